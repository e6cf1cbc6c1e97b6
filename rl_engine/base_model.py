"""Model name → its weights on this rank's device, ready to be adapted or trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rl_engine.config import Config
from rollout.models import locate_model

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_causal_lm(config: Config, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The base model in `model.dtype`, or in another."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        locate_model(config.model.name),
        revision=config.model.revision,
        dtype=dtype or DTYPES[config.model.dtype],
        attn_implementation=config.learner.attention,
    )
    if config.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device)


def meta_model(model: str, revision: str | None) -> Any:
    """The model's shape without its weights, from its config alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, revision=revision))
