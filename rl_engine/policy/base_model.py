"""Model name → its weights on this rank's device, ready to be adapted or trained."""

from __future__ import annotations

import importlib.util
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
    model = load_weights(config.model, choose_attention(config, layout_of(config, device)), dtype)
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


def load_model_config(model: ModelConfig) -> Any:
    """The model's own configuration, as transformers reads its config.json."""
    return AutoConfig.from_pretrained(locate_model(model.name), revision=model.revision)


def layout_of(config: Config, device: torch.device) -> str:
    """How this run lays out its micro-batches on that device."""
    return choose_layout(config, load_model_config(config.model), device.type)


def choose_layout(config: Config, model_config: Any, device_type: str) -> str:
    """`learner.layout`, or what auto comes to for a model of this configuration on `cpu` or `cuda`."""
    if config.learner.layout in ("padded", "packed"):
        return config.learner.layout
    plain = has_plain_attention(model_config)
    if config.learner.layout == NAME:
        if not plain:
            raise ConfigError(
                f"learner.layout is {NAME}, which does not know the attention of a {model_config.model_type} model "
                "with these layers: set it to padded"
            )
        return NAME
    short = config.data.max_prompt_tokens + config.sampling.max_tokens <= LONGEST_SHARED
    return NAME if plain and short and device_type == "cpu" else "padded"


def check_attention(attention: str, key: str) -> None:
    """Raises `ConfigError` for an attention whose kernels are not installed or have no device here."""
    if attention != "flash_attention_2":
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"{key} is {attention}, which needs CUDA: take sdpa here")
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(f"{key} is {attention}, and flash-attn is not installed: pip install flash-attn")


def choose_attention(config: Config, layout: str) -> str:
    """The attention that computes a layout: shared prompts have one of their own."""
    return NAME if layout == NAME else config.learner.attention


def load_meta_model(model: ModelConfig) -> Any:
    """The model on torch's meta device, which has modules and sizes but no weights, from its configuration alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_model_config(model))
