"""A model's configuration, a precision, this machine → whether vLLM can serve the model here, as far as can be told
before anything is loaded."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from rollout.models import EMBEDDED, values_of_layers

VLLM = "0.32"
"""The version of vLLM that the facts in this file were established for."""
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's CPU attention supports."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Configuration attributes of families in which some layers keep a state instead of keys and values.
STATES = ("mamba_d_state", "ssm_state_size", "state_size", "linear_key_head_dim", "linear_num_heads", "conv_L_cache")

# Types that are causal language models in transformers but that vLLM neither has a class for nor serves through
# transformers' own class.
UNSERVED = frozenset(
    {
        *("bamba", "biogpt", "blt", "codegen", "cpmant", "diffllama", "gpt_neo", "gpt_neox_japanese", "minimax", "mpt"),
        *("openai-gpt", "recurrent_gemma", "reformer", "rwkv", "xglm", "xlm", "xlnet", "xlstm", "zamba"),
    }
)
# Types whose class in vLLM does not support adapters; for multimodal wrappers, the wrapper's class.
WITHOUT_ADAPTERS = frozenset(
    {
        *("aria", "bloom", "cohere2_moe", "cohere2_vision", "dbrx", "deepseek_v4", "falcon", "falcon_mamba", "gemma3n"),
        *("gemma3n_text", "gpt2", "gpt-sw3", "gptj", "hrm_text", "kimi_linear", "llava_onevision", "mamba", "mamba2"),
        *("mimo_v2_flash", "paddleocr_vl", "stablelm", "zamba2"),
    }
)
# Types whose experts vLLM passes over when it reloads a model's weights.
NOT_RELOADED = frozenset({"gpt_oss"})
# Text-only models whose class vLLM defines in the same file as those of vision models.
BESIDE_SEEING = frozenset({"qwen3_5_moe_text", "qwen3_5_text", "qwen4_exp_text"})
# Layers that vLLM replaces with others; it rejects their adapters or silently drops them.
REPLACED = {"glm4": ("gate_up_proj", "two layers"), "gpt_bigcode": ("c_attn", "a layer of its own")}
# For compressed keys and values (MLA), vLLM absorbs the up-projection into queries and outputs when it loads the
# weights. The adapter of that layer is loaded but never applied; only MiniCPM 3's class computes with the layer itself.
ABSORBED = ("kv_b_proj", "two matrices made of its weight")
EXPANDED = frozenset({"minicpm3"})
HEAD = "lm_head"
# Text models whose output head vLLM can adapt too; for all others it rejects the adapter when it is loaded.
WITH_HEAD = frozenset(
    {
        *("apertus", "ernie4_5", "exaone4", "exaone_moe", "falcon_h1", "granite", "granite_swa", "granitemoe"),
        *("granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hyperclovax", "inkling_text", "jamba", "lfm2"),
        *("lfm2_moe", "llama", "llama4_text", "minicpm3", "mixtral", "nemotron", "nemotron_h", "phi3", "qwen3"),
        *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"),
    }
)

Dtype = Literal["bfloat16", "float32"]
# The precision that `auto` resolves to. On CUDA vLLM's adapter kernels support only 16-bit types; on a CPU vLLM and the
# learner agree to the sixth digit in float32.
PRECISIONS: dict[str, Dtype] = {"cpu": "float32", "cuda": "bfloat16"}
OLDEST_DRIVER = {12: 525, 13: 580}
"""Major version of CUDA that torch was built for → major version of the oldest driver that supports it."""
COMPUTES_BFLOAT16 = (8, 0)
"""Lowest compute capability at which cards compute, and vLLM serves, in bfloat16."""
WHOLE_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
ANSWER_S = 20
"""Timeout: nvidia-smi answers within a second, or never if the driver hangs."""


def context_length(model_config: Any) -> int:
    """The model's maximum sequence length in tokens; unlimited if its configuration gives none (Mamba)."""
    text = model_config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((int(length) for length in lengths if length), sys.maxsize)


def check_vocabulary(rows: Iterable[Sequence[int]], model_config: Any, tokenizer: Any, name: str) -> None:
    """Raises `ValueError` if an input contains a token that the model has no embedding for, such as one that was added
    only to the tokenizer. `rows`: token ids; `name`: as in `check_servable`."""
    known = getattr(model_config.get_text_config(), "vocab_size", None) or sys.maxsize
    largest = max((int(max(row, default=0)) for row in rows), default=0)
    if largest >= known:
        raise ValueError(
            f"{name}: its tokenizer writes {tokenizer.convert_ids_to_tokens(largest)!r} as token {largest:,}, and the "
            f"model has {known:,} tokens (vocab_size in its config.json): the token was added to the tokenizer alone; "
            "use the tokenizer that belongs to the model, or a template without this token"
        )


def check_positions(model_config: Any, name: str, needed: int) -> None:
    """Raises `ValueError` if a sampler with room for `needed` tokens would scale rotary positions by other factors than
    the learner (longrope): of the two sets, vLLM uses the long one as soon as its context is long enough for it, while
    transformers decides by the longest sequence in the batch. `name`: as in `check_servable`."""
    rope = getattr(model_config.get_text_config(), "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") == "longrope" and limit and needed > limit and rope["short_factor"] != rope["long_factor"]:
        raise ValueError(
            f"prompt and completion may take {needed:,} tokens, and {name} uses other RoPE factors beyond {limit:,} "
            "(longrope): vLLM would use them for short samples too, and the learner would not; lower "
            "data.max_prompt_tokens, sampling.max_tokens or eval.max_tokens"
        )


def layer_kinds(model_config: Any) -> list[str]:
    """The kind of each layer, as listed in the configuration; empty if all layers use full attention."""
    text = model_config.get_text_config()
    return list(getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ())


def is_mixture(text: Any) -> bool:
    """Whether some layers have experts. Dense models of Doge and Nemotron-H state a number of them too, and tell by
    other values that they have none."""
    kinds = layer_kinds(text)
    if not getattr(text, "is_moe", True) or ("mlp" in kinds and "moe" not in kinds):
        return False
    return any(getattr(text, count, None) for count in EXPERTS)


def keeps_states(model_config: Any) -> bool:
    """Whether some layers keep a state instead of keys and values."""
    text = model_config.get_text_config()
    kept = not {"linear_attention", "mamba", "conv"}.isdisjoint(layer_kinds(model_config))
    return kept or any(hasattr(text, name) for name in STATES)


def check_family(model_config: Any, name: str, *, adapter: bool) -> None:
    """Raises a one-line `ValueError` for a model of a type that vLLM serves on no machine. Arguments as for
    `check_servable`."""
    kind = model_config.model_type
    if kind in UNSERVED:
        raise ValueError(f"{name} is of type {kind}, which vLLM {VLLM} does not serve: use a model of another type")
    if adapter and kind in WITHOUT_ADAPTERS:
        raise ValueError(
            f"{name} is of type {kind}, which vLLM {VLLM} does not serve with adapters: use method=full, or a model of "
            "another type"
        )


def check_servable(model_config: Any, name: str, *, adapter: bool) -> None:
    """Raises a one-line `ValueError` for a model with which vLLM would fail to start.

    Args:
        model_config: as transformers' `AutoConfig` reads it.
        name: the model's name, as the command refers to it in messages.
        adapter: whether adapters will be served.
    """
    import torch  # heavy; commands that fail earlier never pay for it

    check_family(model_config, name, adapter=adapter)
    text, kind = model_config.get_text_config(), model_config.model_type
    sees = text is not model_config
    if (sees or kind in BESIDE_SEEING) and importlib.util.find_spec("torchvision") is None:
        part = "is multimodal" if sees else "shares a class with multimodal models"
        raise ValueError(
            f"{name} is of type {kind}, which {part}, so vLLM needs torchvision, and that is not installed: install "
            "the build of torchvision that belongs to this torch, or use a text model of another type"
        )
    if torch.cuda.is_available():
        return
    if adapter and is_mixture(text):
        remedy = "" if kind in NOT_RELOADED else "method=full, or "
        raise ValueError(
            f"{name} is a mixture of experts, and vLLM's CPU build cannot serve one with an adapter (it stops with "
            f"\"module 'triton.language' has no attribute 'float32'\"): use {remedy}a CUDA machine"
        )
    sizes = _head_sizes(text)
    if not sizes <= set(CPU_HEAD_SIZES):
        raise ValueError(
            f"{name} has attention heads of size {', '.join(map(str, sorted(sizes)))}, and vLLM's CPU build serves "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}: use another model, or a CUDA machine"
        )


def check_reloadable(model_config: Any, name: str) -> None:
    """Raises `ValueError` for a model whose weights vLLM cannot all replace while it runs. `name`: as in
    `check_servable`."""
    if (kind := model_config.model_type) in NOT_RELOADED:
        raise ValueError(
            f"{name} is of type {kind}, and vLLM {VLLM} does not replace the experts of such a model while it runs: "
            "use method=lora, or a model of another type"
        )


def check_adaptable(model_config: Any, layers: Iterable[str], key: str, remedy: str | None = None) -> None:
    """Raises `ValueError` if vLLM cannot serve an adapter on one of these layers, given by their paths. `key` names the
    setting that chose them; without a `remedy` the message suggests choosing the other layers."""
    leaves, text = sorted({path.rpartition(".")[2] for path in layers}), model_config.get_text_config()
    leaf, other = REPLACED.get(model_config.model_type, ("", ""))
    if getattr(text, "kv_lora_rank", None) and text.model_type not in EXPANDED:
        leaf, other = ABSORBED
    if leaf in leaves:
        why = f", where it has {other} in its place"
    elif HEAD in leaves and text.model_type not in WITH_HEAD:
        leaf, why = HEAD, ""
    else:
        return
    others = ", ".join(one for one in leaves if one != leaf)
    raise ValueError(
        f"{key}: vLLM serves no adapter of {leaf} in a model of type {model_config.model_type}{why}: "
        f"{remedy or f'give the others, [{others}]'}"
    )


def _head_sizes(text: Any) -> set[int]:
    """The sizes of the attention heads; empty if keys are stored compressed or there is no attention."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads or getattr(text, "kv_lora_rank", None):
        return set()
    stated = {int(size) for name in ("head_dim", "global_head_dim") for size in values_of_layers(text, name) if size}
    return stated or {text.hidden_size // heads}


def precision_of(dtype: str, device_type: str) -> Dtype:
    """Resolve a precision, which may be `auto`, for `cpu` or `cuda`."""
    return PRECISIONS[device_type] if dtype == "auto" else cast("Dtype", dtype)


def check_precision(dtype: str, device_type: str, key: str, *, adapter: bool) -> None:
    """Raises `ValueError` for a precision in which vLLM cannot serve adapters on this device. `key`: the setting that
    gave the precision."""
    if adapter and dtype == "float32" and device_type == "cuda":
        raise ValueError(
            f"{key} is float32, and vLLM's adapter kernels on CUDA take only 16-bit values: give bfloat16, or auto "
            "(bfloat16 on CUDA, float32 on a CPU)"
        )


def check_computes(dtype: str, key: str) -> None:
    """Raises `ValueError` if this process's CUDA card does not compute in this precision. `key`: as in
    `check_precision`."""
    import torch  # heavy; commands that fail earlier never pay for it

    if dtype != "bfloat16" or not torch.cuda.is_available():
        return
    if (capability := torch.cuda.get_device_capability()) < COMPUTES_BFLOAT16:
        raise ValueError(
            f"{key} is bfloat16, which {torch.cuda.get_device_name()} does not support (compute capability "
            f"{'.'.join(map(str, capability))}; it needs {'.'.join(map(str, COMPUTES_BFLOAT16))}): use a newer card, "
            "or float32 without an adapter"
        )


def serving_precision(dtype: str, model: str, *, adapter: bool) -> Dtype:
    """Resolve `--dtype` for a command that only samples. auto is bfloat16, but for the embedded model the precision
    that its adapters are trained in. Raises `ValueError` as `check_precision` does."""
    import torch  # heavy; commands that fail earlier never pay for it

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = precision_of(dtype, device_type) if dtype != "auto" or model == EMBEDDED else "bfloat16"
    check_precision(chosen, device_type, "--dtype", adapter=adapter)
    check_computes(chosen, "--dtype")
    return chosen


def check_semaphores() -> None:
    """Raises a one-line `ValueError` if no semaphore can be made, as in a container without shared memory or when that
    is full. vLLM takes one, and the system's error does not say where they are."""
    try:
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        raise ValueError(
            f"vLLM needs a semaphore, and none can be made in /dev/shm ({error.strerror}): make room there, or mount "
            "shared memory (docker run --shm-size 1g; mount -t tmpfs tmpfs /dev/shm)"
        ) from error


def check_cards() -> None:
    """Raises a one-line `ValueError` if the machine has cards but a CUDA build of torch sees none: then vLLM's CUDA
    build could not start either. The driver is queried, which takes a second, only if torch sees no card. If it sees
    some, checks that one of them belongs to this process and is named in a way that vLLM understands."""
    import torch  # heavy; commands that fail earlier never pay for it

    if torch.version.cuda is None:
        return
    if torch.cuda.is_available():
        _check_chosen(torch.cuda.device_count())
        return
    driver = driver_version()
    if driver is None:
        return
    built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    oldest = OLDEST_DRIVER.get(int(torch.version.cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0]) < oldest:
        remedy = (
            f"it needs driver {oldest} or newer; update the driver, or use the CPU's build (make clean, then make "
            "DEVICE=cpu …)"
        )
    elif chosen is not None:
        remedy = f"CUDA_VISIBLE_DEVICES is {chosen!r}, which hides every card"
    else:
        remedy = "python -c 'import torch; torch.cuda.init()' says why"
    raise ValueError(f"nvidia-smi answers (driver {driver}), and {built} sees no card: {remedy}")


def _check_chosen(count: int) -> None:
    """Raises `ValueError` if a launcher's process has no card of its own among the `count` visible ones, or if
    `CUDA_VISIBLE_DEVICES` has an abbreviated UUID: CUDA accepts that, vLLM does not."""
    if (rank := int(os.environ.get("LOCAL_RANK", "0"))) >= count:
        raise ValueError(
            f"LOCAL_RANK is {rank}, and CUDA shows this process {count} card{'s' * (count != 1)}: start at most one "
            "process for each card, and let each see all of them"
        )
    for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","):
        if name.strip().startswith("GPU-") and not WHOLE_UUID.fullmatch(name):
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES names a card {name!r}, and vLLM accepts only its number or its whole UUID "
                "(nvidia-smi -L shows both)"
            )


def driver_version() -> str | None:
    """The driver's version according to nvidia-smi; None if there is no card, or the driver does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"\d+(\.\d+)*", asked.stdout)
    return found.group() if found else None


def why_not(error: Exception, model: str) -> ValueError:
    """vLLM's long error about a model that it cannot serve, as a one-line `ValueError`. About a weight that it has no
    place for it goes on with the names of all that it has."""
    said, has, _ = re.sub(r"\[type=.*", "", str(error), flags=re.DOTALL).partition("The available parameters")
    message = " ".join(said.split()) or type(error).__name__
    remedy = " If transformers loads the model, its save_pretrained writes the names that vLLM knows." if has else ""
    return ValueError(f"vLLM cannot serve {model} here: {message}{remedy}")
