"""A model's configuration → whether vLLM can serve it here, as far as that is known before anything is loaded."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM's attention on a CPU."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Attributes of families some of whose layers keep a state in place of keys and values.
STATES = ("mamba_d_state", "ssm_state_size", "state_size", "linear_key_head_dim", "linear_num_heads", "conv_L_cache")


def context_length(model_config: Any) -> int:
    """The longest sequence that a model is made for, in tokens; without a limit where it states none (Mamba)."""
    text = model_config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((int(length) for length in lengths if length), sys.maxsize)


def keeps_states(model_config: Any) -> bool:
    """Whether some layers keep a state in place of keys and values."""
    text = model_config.get_text_config()
    kinds = {*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())}
    return not kinds.isdisjoint({"linear_attention", "mamba", "conv"}) or any(hasattr(text, name) for name in STATES)


def check_servable(model_config: Any, name: str, *, adapter: bool) -> None:
    """Raises `ValueError` in one line for a model that vLLM would stop at when it starts.

    Args:
        model_config: as transformers' `AutoConfig` reads it.
        name: `model.name`, or what else the command calls it.
        adapter: whether adapters are to be served.
    """
    import torch  # heavy, for commands that have failed before

    text = model_config.get_text_config()
    if text is not model_config and importlib.util.find_spec("torchvision") is None:
        raise ValueError(
            f"{name} is of type {model_config.model_type}, whose language model is one part beside others, and vLLM "
            "serves those with torchvision alone, which is not installed: install the build of torchvision that "
            "belongs to this torch, or take a text model"
        )
    if torch.cuda.is_available():
        return
    if adapter and any(getattr(text, count, None) for count in EXPERTS):
        raise ValueError(
            f"{name} is a mixture of experts, and vLLM's CPU build cannot serve one with an adapter (it stops with "
            "\"module 'triton.language' has no attribute 'float32'\"): use method=full, or a CUDA machine"
        )
    sizes = _head_sizes(text)
    if not sizes <= set(CPU_HEAD_SIZES):
        raise ValueError(
            f"{name} has attention heads of size {', '.join(map(str, sorted(sizes)))}, and vLLM's CPU build serves "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}: take another model, or a CUDA machine"
        )


def _head_sizes(text: Any) -> set[int]:
    """Sizes of the heads; none known where keys are stored compressed or there is no attention."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads or getattr(text, "kv_lora_rank", None):
        return set()
    stated = {int(size) for name in ("head_dim", "global_head_dim") if (size := getattr(text, name, None))}
    return stated or {text.hidden_size // heads}


def why_not(error: Exception, model: str) -> ValueError:
    """What vLLM says, at length, when it cannot serve a model, as one line."""
    said = " ".join(re.sub(r"\[type=.*", "", str(error), flags=re.DOTALL).split())
    return ValueError(f"vLLM cannot serve {model} here: {said or type(error).__name__}")
