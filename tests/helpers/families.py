"""Tiny random models of every text model family that transformers implements and vLLM serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rollout.models import EMBEDDED_DIR

VOCABULARY = 96
# Values that make a model small, used wherever a configuration has a number of that name.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size", "n_inner", "dff"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("shared_intermediate_size", "dense_intermediate_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_layers_per_stack"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_kv_heads", "swa_num_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 1),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "kv_channels", "attention_head_dim"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "time_step_rank", "hc_lowrank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim", "index_head_dim"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups", "o_groups"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("mamba_n_heads", "num_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "num_kv_shared_layers"), 0),
    "qk_head_dim": 64,
    "mamba_d_ssm": 128,
    "state_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
# Names in SMALL that are set even if the family's default is None.
UNSTATED = ("head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok", "n_shared_experts")
# Additional values that a family needs.
_LATENT = {"num_key_value_heads": 2}
ODD: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), _LATENT),
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 1, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 64, "ffn_act_fn": {"name": "silu"}},
    },
    "diffllama": {"attention_dropout": 0.0, "num_key_value_heads": 2},
    "kimi_linear": {"linear_num_heads": 2, "linear_head_dim": 32, "num_experts_per_token": 1, **_LATENT},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_layers": 1, "zero_expert_num": 2, "moe_topk": 2, "head_dim": 32, "num_key_value_heads": 2},
    "roc_bert": {
        "shape_vocab_size": VOCABULARY,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 32,
        "pronunciation_embed_dim": 32,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_headdim": 32, "attention_hidden_size": 128},
}
# Values that are set wherever a configuration has them, so that their effect shows.
TELLING: dict[str, Any] = {
    "logit_scale": 0.5,
    "logits_scaling": 4.0,
    "lm_head_multiplier": 3.0,
    "final_logit_softcapping": 2.0,
    "attention_dropout": 0.3,
    "attn_pdrop": 0.3,
    "hidden_dropout": 0.3,
    "resid_pdrop": 0.3,
    "router_jitter_noise": 0.3,
}


# Values for the vision part of a multimodal wrapper, and the token ids of image placeholders.
SEEING: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "depth"), 1),
    **dict.fromkeys(("out_hidden_size", "projector_input_dim", "projector_output_dim", "vision_output_dim"), 64),
    "image_size": 28,
    "patch_size": 14,
    "num_key_value_heads": 2,
    "num_position_embeddings": 16,
}
PLACEHOLDERS: dict[str, Any] = {
    **dict.fromkeys(("image_token_id", "image_token_index"), 90),
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
    "mm_tokens_per_image": 4,
    "boi_token_index": 92,
    "eoi_token_index": 93,
    "boi_token_id": 92,
    "eoi_token_id": 93,
}


def families() -> list[str]:
    """Model types of transformers' causal language models that vLLM implements or serves through its Transformers
    backend."""
    from vllm import ModelRegistry

    native = ModelRegistry.get_supported_archs()
    return [
        kind
        for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        if name in native or getattr(transformers, name).is_backend_compatible()
        if is_text(kind)
    ]


def is_text(kind: str) -> bool:
    """Whether the configuration describes a single text model: wrappers have parts, and drafters no vocabulary."""
    config = AutoConfig.for_model(kind)
    parts = any(isinstance(getattr(config, name, None), PreTrainedConfig) for name in ("text_config", "vision_config"))
    return hasattr(config, "vocab_size") and not parts


def tiny_config(kind: str) -> Any:
    """A small configuration of the family; transformers fills in lists that follow from the sizes."""
    chosen = _fitting(AutoConfig.for_model(kind), {**SMALL, **TELLING})
    return AutoConfig.for_model(kind, **{**chosen, **ODD.get(kind, {})})


def _fitting(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values whose names the configuration has."""
    names = config.to_dict()
    return {
        name: value
        for name, value in values.items()
        if names.get(name) is not None or (name in UNSTATED and name in names)
    }


def tiny_wrapper(kind: str) -> Any:
    """A tiny multimodal wrapper with a language model and a vision model, random weights."""
    config = AutoConfig.for_model(kind)
    text = _fitting(config.text_config, SMALL)
    vision = _fitting(config.vision_config, {**SMALL, **SEEING}) if config.vision_config else None
    torch.manual_seed(0)
    small = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **_fitting(config, PLACEHOLDERS))
    return AutoModelForImageTextToText.from_config(small).float().eval()


def tiny_model(kind: str) -> Any:
    """A tiny model with random float32 weights, including a bias of the output head if the family has one."""
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(tiny_config(kind)).parameters())
    assert size < 3_000_000, f"{kind} is not tiny: {size:,} parameters"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind)).float().eval()
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model


def write_tiny(kind: str, directory: Path) -> None:
    """Write a checkpoint that a run can use: a tiny model with the embedded model's tokenizer."""
    tiny_model(kind).save_pretrained(directory)
    AutoTokenizer.from_pretrained(EMBEDDED_DIR).save_pretrained(directory)
