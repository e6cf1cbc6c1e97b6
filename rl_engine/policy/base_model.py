"""Model name → the model on this rank's device, ready to be adapted or trained."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedConfig
from transformers.models.auto.auto_factory import _get_model_class

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.policy.attention import (
    CAPABILITY,
    HEAD_STEP,
    LARGEST_HEAD,
    PACKED_SHARED,
    SHARED_PROMPT,
    SHARING,
    VARLEN,
    check_packable,
    has_plain_attention,
    is_computed,
)
from rollout.config import ModelConfig
from rollout.models import auto_class, load_model, locate_config, locate_model, meta_model, read_model_config

# Shared-prompt attention saves its probabilities; beyond this many tokens they dominate memory.
LONGEST_SHARED = 2048
# attention_dropout, resid_pdrop, layerdrop, router_jitter_noise, …
NOISE = re.compile(r"drop|jitter")
# In PhiMoE it says how far apart the scores of two experts may be for both to be used, in evaluation too. vLLM uses
# 0.01, the value in the checkpoints.
NO_NOISE = frozenset({("phimoe", "router_jitter_noise")})
# vLLM's layers of these families look back at one position more than config.json says, as the models were trained.
WIDER_WINDOWS = frozenset({"cohere2", "cohere2_moe"})
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_causal_lm(config: Config, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The base model as the learner computes it, in `dtype` or else `model.dtype`."""
    model = load_weights(config.model, attention_of(config, device), dtype)
    return _made_ready(model.to(device), config, device)


LoadBase = Callable[[Config, torch.device], Any]
"""Loads a run's own base model, to be adapted: `load_causal_lm` or `SharedBase.model_of`."""


class SharedBase:
    """One copy of the weights for several runs, each of which has its own modules around them.

    A run freezes the weights and adapts its own modules, which no other run sees.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._model = load_weights(config.model, attention_of(config, device)).to(device)

    def model_of(self, config: Config, device: torch.device) -> Any:
        """See `load_causal_lm`. The parameters are new objects that share the storage of the common weights, so that
        what a library sets on a parameter, such as `requires_grad`, affects this run only. Tied weights stay tied."""
        own = {id(one): nn.Parameter(one.detach(), one.requires_grad) for one in self._model.parameters()}
        model = copy.deepcopy(self._model, own)
        attention = attention_of(config, device)
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        return _made_ready(model, config, device)


def _made_ready(model: Any, config: Config, device: torch.device) -> Any:
    """The model with gradient checkpointing if configured, and with fused norms on a GPU."""
    if config.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if device.type == "cuda":
        fuse_norms(model)
    return model


def fuse_norms(model: nn.Module) -> None:
    """Compute the model's RMS norms with torch's own kernel: one kernel instead of the six of transformers, rounding
    once instead of twice (Zhang and Sennrich 2019, equation 4)."""
    known: dict[type[nn.Module], bool] = {}
    for module in model.modules():
        kind = type(module)
        if kind not in known:
            known[kind] = _is_plain_rms_norm(module)
        if known[kind]:
            module.forward = MethodType(_fused_norm, module)


def _fused_norm(norm: Any, hidden: Tensor) -> Tensor:
    if norm.weight.dtype != hidden.dtype:
        return type(norm).forward(norm, hidden)  # type: ignore[no-any-return]
    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _is_plain_rms_norm(module: nn.Module) -> bool:
    """Whether a layer computes exactly w · x / √(mean(x²) + ε). It is tried out, because some families' layers of that
    name add one to w, have a gate, or round elsewhere."""
    weight, epsilon = (getattr(module, name, None) for name in ("weight", "variance_epsilon"))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    draw = torch.Generator().manual_seed(0)
    tried = copy.deepcopy(module).to("cpu", torch.float32)
    with torch.no_grad():
        tried.weight.copy_(torch.randn(weight.shape, generator=draw))  # type: ignore[operator]
        x = torch.randn(3, *weight.shape, generator=draw)
        return torch.allclose(tried(x), rms_norm(x, weight.shape, tried.weight, epsilon), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def load_weights(model: ModelConfig, attention: str, dtype: torch.dtype | None = None) -> Any:
    """A model on the CPU, in `dtype` or else `model.dtype`, with dropout and other noise switched off."""
    model_config = without_noise(load_model_config(model))
    if model_config.model_type in WIDER_WINDOWS and model_config.sliding_window:
        model_config.sliding_window += 1
    attention = computable(attention, model_config)
    try:
        return load_model(
            model_config,
            locate_model(model.name),
            f"model.name: {model.name}",
            revision=model.revision,
            dtype=dtype or DTYPES[model.precision],
            attn_implementation=attention,
        )
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        raise ConfigError(
            f"transformers does not implement attention {attention} for model type {model_config.model_type}: give "
            "learner.attention=eager (in supervised training train.attention=eager)"
        ) from error


def computable(attention: str, model_config: Any) -> str:
    """The attention implementation to use when `attention` is requested. It replaces sdpa by eager if transformers has
    no sdpa for the family (GPT-OSS), or if sdpa would skip the soft cap that the sampler applies to scores (Gemma 2).
    """
    if attention != "sdpa":
        return attention
    capped = getattr(model_config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped or not _class_of(model_config)._supports_sdpa else "sdpa"


def _class_of(model_config: Any) -> Any:
    """The class that transformers builds for a configuration."""
    return _get_model_class(model_config, auto_class(model_config)._model_mapping)


def load_model_config(model: ModelConfig) -> Any:
    """The model's own configuration, as transformers reads its config.json.

    Raises `ValueError` for one that transformers does not know, `ConfigError` for a quantized checkpoint.
    """
    model_config = read_model_config(locate_config(model), model.revision, f"model.name: {model.name}")
    quantized = getattr(model_config, "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        raise ConfigError(
            f"model.name {model.name} is a quantized checkpoint ({method or 'unnamed method'}), which cannot be "
            "trained: learner and sampler would round its weights differently and so compute different policies; use "
            "the bfloat16 checkpoint that it was made from"
        )
    return model_config


def noise_of(model_config: Any) -> dict[str, float]:
    """The nonzero dropout rates and router jitters of a configuration and its nested configurations, by name."""
    return {name: value for part in _parts(model_config) for name, value in _noise_of_part(part).items()}


def without_noise(model_config: Any) -> Any:
    """The configuration with `noise_of` set to zero: the sampler has no noise, and both must compute one policy."""
    for part in _parts(model_config):
        for name in _noise_of_part(part):
            setattr(part, name, 0.0)
    return model_config


def model_notes(model: ModelConfig) -> list[str]:
    """Notes for the user about what is switched off in the checkpoint's configuration."""
    noise = ", ".join(f"{name} {value:g}" for name, value in noise_of(load_model_config(model)).items())
    return [f"model: {noise} in the checkpoint's config.json is switched off: the sampler has none"] if noise else []


def _parts(model_config: Any) -> list[Any]:
    inner = [value for value in vars(model_config).values() if isinstance(value, PreTrainedConfig)]
    return [model_config, *(part for one in inner for part in _parts(one))]


def _noise_of_part(part: Any) -> dict[str, float]:
    return {
        name: value
        for name, value in vars(part).items()
        if NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if (part.model_type, name) not in NO_NOISE
    }


def published_config(model: ModelConfig) -> Any:
    """The configuration written with a full model: the checkpoint's own, with `model.dtype`."""
    model_config = load_model_config(model)
    model_config.dtype = DTYPES[model.precision]
    return model_config


def layout_of(config: Config, device: torch.device) -> str:
    """The layout of this run's micro-batches on `device`."""
    return choose_layout(config, load_model_config(config.model), device.type)


def choose_layout(config: Config, model_config: Any, device_type: str) -> str:
    """Resolve `learner.layout`, for a model with this configuration on `cpu` or `cuda`, to one of `LAYOUTS`."""
    if config.learner.layout == "packed":
        check_packable(model_config, "learner.layout packed")
    if config.learner.layout in ("padded", "packed"):
        return config.learner.layout
    plain = has_plain_attention(model_config)
    if config.learner.layout == SHARED_PROMPT:
        if not plain:
            raise ConfigError(
                f"learner.layout is {SHARED_PROMPT}, which does not support the attention layers of this "
                f"{model_config.model_type} model: give learner.layout=padded"
            )
        if device_type == "cpu":
            return SHARED_PROMPT
        if not is_computed(model_config, config.model.dtype, device_type):
            raise ConfigError(
                f"learner.layout is {SHARED_PROMPT}, which on CUDA needs model.dtype bfloat16, a card of compute "
                f"capability {CAPABILITY[0]} or newer and a head size of at most {LARGEST_HEAD}, a multiple of "
                f"{HEAD_STEP}: give learner.layout=padded or auto"
            )
        return PACKED_SHARED
    if device_type == "cpu":
        short = config.longest_sequence <= LONGEST_SHARED
        return SHARED_PROMPT if plain and short else "padded"
    own = choose_attention(config, "packed", model_config, device_type) == VARLEN
    return "packed" if own else "padded"


def check_attention(attention: str, key: str) -> None:
    """Raise `ConfigError` for an attention whose kernels are not installed or that needs a device that is missing."""
    if attention != "flash_attention_2":
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"{key} is {attention}, which needs CUDA: use sdpa here")
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(f"{key} is {attention}, and flash-attn is not installed: pip install flash-attn")


def check_checkpointing(model: ModelConfig, key: str) -> None:
    """Raise `ConfigError` if `key` asks for gradient checkpointing, and transformers has none for the model."""
    model_config = load_model_config(model)
    if not _class_of(model_config).supports_gradient_checkpointing:
        raise ConfigError(
            f"{key} is true, and transformers has no gradient checkpointing for models of type "
            f"{model_config.model_type}: set it to false"
        )


def attention_of(config: Config, device: torch.device) -> str:
    """The attention implementation of this run's learner on `device`."""
    model_config = load_model_config(config.model)
    return choose_attention(config, choose_layout(config, model_config, device.type), model_config, device.type)


def choose_attention(config: Config, layout: str, model_config: Any, device_type: str) -> str:
    """The attention implementation for a layout. Shared prompts have their own, and so do packed samples if the
    configuration says sdpa, which would need a mask to separate them."""
    if layout in SHARING:
        return SHARED_PROMPT if layout == SHARED_PROMPT else VARLEN
    packed = layout == "packed" and config.learner.attention == "sdpa"
    if packed and is_computed(model_config, config.model.dtype, device_type):
        return VARLEN
    return computable(config.learner.attention, model_config)


def load_meta_model(model: ModelConfig) -> Any:
    """The model on torch's meta device, from its configuration alone: modules and sizes, but no weights.

    Raises `ValueError` as `load_model_config` does.
    """
    return meta_model(load_model_config(model), f"model.name: {model.name}")
