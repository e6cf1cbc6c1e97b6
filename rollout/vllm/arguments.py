"""Settings → what vLLM is started with, and the arithmetic of adapters that it finds when it asks its platform."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm import ModelRegistry
from vllm.platforms import current_platform

from rollout.engine import EngineSettings, smallest_allowed_rank
from rollout.models import read_model_config
from rollout.servable import keeps_states

GIB = 1024**3
GENERATES = re.compile("ForCausalLM|ForConditionalGeneration|LMHead")
"""In the names of classes that continue a text."""


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    model_config = read_model_config(settings.model, settings.revision, settings.model)
    arguments: dict[str, Any] = {
        "model": settings.model,
        "revision": settings.revision,
        "hf_overrides": overrides_of(model_config),
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        # The log-probability under what was really sampled from: after temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        # Not Mistral's own, which vLLM takes where a model's files are there in its format too: see `read_tokenizer`.
        "tokenizer_mode": "hf",
        # Of a model that also sees or hears, what reads alone; nothing else of it is loaded.
        "language_model_only": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if Path(settings.model).is_dir():
        # What transformers reads. By itself vLLM takes params.json and consolidated.safetensors where they lie beside:
        # in a directory of Mistral's whose model was trained on, these are still those of before.
        arguments |= {"config_format": "hf", "load_format": "hf"}
    if settings.lora_rank:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": smallest_allowed_rank(settings.lora_rank),
            "max_loras": settings.max_loras,
            # A new version is there before the one that it replaces goes: nobody else's is to make room.
            "max_cpu_loras": settings.max_loras if settings.max_loras == 1 else 2 * settings.max_loras,
        }
    if settings.ranks > 1:
        arguments["distributed_executor_backend"] = "external_launcher"
    if torch.cuda.is_available():
        arguments |= {
            "gpu_memory_utilization": settings.memory_fraction,
            "enable_sleep_mode": settings.sleep,
        }
    else:
        arguments |= _on_cpu(settings, model_config)
    if _multiplies_itself(settings) and settings.dtype == "float32":
        from rollout.vllm.few_adapters import KERNELS

        arguments |= KERNELS
    return arguments


def _on_cpu(settings: EngineSettings, model_config: Any) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * GIB),
        # vLLM never compiles a CPU model that takes adapters. One without would take a compiler and a minute at
        # its first start, and both methods are to run the same arithmetic.
        "enforce_eager": True,
        # A generator of the CPU cannot be moved to the middle of a prompt: seeds need whole prefills,
        # and whole prefills need a budget that the longest prompt fits into.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, settings.max_model_len),
        # A group's samples share the whole blocks of their prompt; in vLLM's blocks of 128 few prompts have one.
        # The smallest that its attention serves at full speed.
        "block_size": 32,
        # What layers with states keep of a prompt can be shared in parts of a prefill alone, and here those are whole.
        "enable_prefix_caching": not keeps_states(model_config),
    }


def overrides_of(model_config: Any) -> dict[str, Any]:
    """What vLLM would read otherwise than transformers, whose model is the one that learns: it goes by the class that
    config.json names, if any, where that goes by the model's type, and knows the factor of Ministral 3's queries beyond
    the first positions by the name that it has in Mistral's own format."""
    found: dict[str, Any] = {}
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_config.model_type)
    served = ModelRegistry.get_supported_archs()
    if own and not any(GENERATES.search(one) and one in served for one in model_config.architectures or ()):
        found["architectures"] = [own]
    text = model_config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if beta := rope.get("llama_4_scaling_beta"):
        begin = rope["original_max_position_embeddings"]
        scaling = {"llama_4_scaling": {"beta": beta, "original_max_position_embeddings": begin}}
        found |= scaling if text is model_config else {"text_config": scaling}
    return found


def _multiplies_itself(settings: EngineSettings) -> bool:
    """Whether `rollout/vllm/few_adapters.py` serves this engine."""
    return bool(settings.own_products and current_platform.is_cpu())


@contextlib.contextmanager
def lora_arithmetic(settings: EngineSettings) -> Iterator[None]:
    """While an engine is built inside, its CPU platform names our class when asked which one multiplies adapters.

    Engines that start processes of their own (tensor parallel) ask there, and get vLLM's class.
    """
    if not _multiplies_itself(settings):
        yield
        return
    current_platform.get_punica_wrapper = lambda: "rollout.vllm.few_adapters.FewAdaptersWrapper"
    try:
        yield
    finally:
        del current_platform.get_punica_wrapper
