"""Settings → the arguments that vLLM is started with, and the adapter kernels that its platform hook returns."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
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
"""Matches the names of classes that generate text."""


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
        # Log-probabilities under the distribution actually sampled from: after temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        # Not Mistral's own tokenizer, which vLLM prefers if the model also has files in that format: `read_tokenizer`.
        "tokenizer_mode": "hf",
        # The files that transformers reads. vLLM would prefer params.json and consolidated.safetensors if they exist:
        # in a copy of a Mistral model that was fine-tuned, those are still the original weights.
        "config_format": "hf",
        "load_format": "hf",
        # Without an index, vLLM downloads and reads all of a repository. The first pattern is its default.
        "ignore_patterns": ["original/**/*", "consolidated*"],
        # Load only the language model of a multimodal model.
        "language_model_only": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if settings.lora_rank:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": smallest_allowed_rank(settings.lora_rank),
            "max_loras": settings.max_loras,
            # A new version is loaded before the one it replaces is dropped; it must not evict any other adapter.
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
        # vLLM never compiles a CPU model with adapters. Compiling one without would need a compiler and a minute at the
        # first start, and LoRA and full fine-tuning should run the same arithmetic.
        "enforce_eager": True,
        # A CPU random generator cannot be advanced to the middle of a prompt, so per-request seeds need unchunked
        # prefills, which need a token budget that the longest prompt fits into.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(8192, settings.max_model_len),
        # The completions of a group share the full blocks of their prompt, and few prompts fill one of vLLM's default
        # 128 tokens. This is the smallest size at which its attention runs at full speed.
        "block_size": 32,
        # Prefix caching for layers with states needs chunked prefills, which are disabled above.
        "enable_prefix_caching": not keeps_states(model_config),
    }


def overrides_of(model_config: Any) -> dict[str, Any]:
    """Corrections to config.json where vLLM would read it differently from transformers, whose model is trained. vLLM
    picks the class that config.json names, if any, and transformers the one of the model's type; and vLLM knows the
    scaling of Ministral 3's queries at later positions only by its name in Mistral's own format."""
    found: dict[str, Any] = {}
    own = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_config.model_type)
    served = ModelRegistry.get_supported_archs()
    if own and own not in served:  # PhimoeForCausalLM is PhiMoEForCausalLM there
        own = next((one for one in served if one.lower() == own.lower()), own)
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
    """Whether this engine uses our adapter kernels (`rollout/vllm/few_adapters.py`)."""
    return bool(settings.own_products and current_platform.is_cpu())


@contextlib.contextmanager
def lora_arithmetic(settings: EngineSettings) -> Iterator[None]:
    """While an engine is built inside the block, vLLM's CPU platform returns our class for the adapter kernels.

    Engines that start their own processes (tensor parallelism) look it up in those, and get vLLM's class.
    """
    if not _multiplies_itself(settings):
        yield
        return
    current_platform.get_punica_wrapper = lambda: "rollout.vllm.few_adapters.FewAdaptersWrapper"
    try:
        yield
    finally:
        del current_platform.get_punica_wrapper
