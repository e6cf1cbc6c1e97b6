"""Model name → its weights on this rank's device, ready to be adapted or trained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.policy.attention import NAME, has_plain_attention
from rollout.config import ModelConfig
from rollout.models import locate_model

# Attention over shared prompts keeps its probabilities: beyond this many tokens they outgrow everything else.
LONGEST_SHARED = 2048
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_causal_lm(config: Config, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The base model in `model.dtype`, or in another, as the learner computes it."""
    attention = NAME if layout_of(config, device) == NAME else config.learner.attention
    model = load_weights(config.model, attention, dtype)
    if config.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device)


def load_weights(model: ModelConfig, attention: str, dtype: torch.dtype | None = None) -> Any:
    """A model on the CPU, in `model.dtype` or in another."""
    return AutoModelForCausalLM.from_pretrained(
        locate_model(model.name),
        revision=model.revision,
        dtype=dtype or DTYPES[model.dtype],
        attn_implementation=attention,
    )


def layout_of(config: Config, device: torch.device) -> str:
    """How this run lays out its micro-batches on that device."""
    facts = AutoConfig.from_pretrained(locate_model(config.model.name), revision=config.model.revision)
    return choose_layout(config, facts, device)


def choose_layout(config: Config, facts: Any, device: torch.device) -> str:
    """`learner.layout`, or what auto makes of it for a model of these facts."""
    if config.learner.layout in ("padded", "packed"):
        return config.learner.layout
    plain = has_plain_attention(facts)
    if config.learner.layout == NAME:
        if not plain:
            raise ConfigError(
                f"learner.layout is {NAME}, which does not know the attention of a {facts.model_type} model with these "
                "layers: set it to padded"
            )
        return NAME
    short = config.data.max_prompt_tokens + config.sampling.max_tokens <= LONGEST_SHARED
    return NAME if plain and short and device.type == "cpu" else "padded"


def meta_model(model: str, revision: str | None) -> Any:
    """The model's shape without its weights, from its config alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, revision=revision))
