"""Queries, keys and values of a micro-batch whose samples share their prompts → attention over them.

The samples of a group begin with the same tokens. With every prompt laid out once in a row, followed by every
completion, the model computes a prompt once for its whole group; only attention needs to know which completion belongs
to which prompt. Shapes beyond the legend of `rl_engine/learner/advantages.py`: Q prompts in a micro-batch, L positions
per prompt, D head size.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from rl_engine.config.file import ConfigError

SHARED_PROMPT = "shared_prompt"
# transformers architectures with plain causal attention and rotary positions that are passed in, as long as no layer
# uses a sliding window. tests/policy/test_packed_attention.py compares each of them with one row per sample.
MODEL_TYPES = frozenset(
    {
        *("apertus", "arcee", "cohere", "ernie4_5", "ernie4_5_moe", "flex_olmo", "gemma", "glm", "glm4"),
        *("glm4_moe", "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe"),
        *("hyperclovax", "llama", "minimax_m2", "ministral3", "mistral", "mixtral", "nanochat", "olmo", "olmo2"),
        *("olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3"),
        "starcoder2",
    }
)

# Architectures for which transformers builds masks that separate the samples of a row where position ids restart.
# tests/policy/test_attention.py compares each of them with one row per sample.
PACKABLE = frozenset(
    {
        *("apertus", "arcee", "cohere", "cohere2", "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5"),
        *("ernie4_5_moe", "exaone4", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2"),
        *("gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "granitemoeshared", "helium"),
        *("hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "llama", "llama4_text", "minicpm3", "minimax_m2"),
        *("ministral", "ministral3", "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe"),
        *("phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm"),
        *("starcoder2", "vaultgemma"),
    }
)


NOT_PACKED = "give learner.layout=padded (in supervised training data.packing=false)"


def check_packable(model_config: Any, key: str) -> None:
    """Raise `ConfigError`, naming the key that asks for packed samples, for a family that would attend across them."""
    if model_config.model_type not in PACKABLE:
        raise ConfigError(
            f"{key} packs several samples into one row, and attention of model type {model_config.model_type} is not "
            f"known to keep them apart: {NOT_PACKED}"
        )
    # Chunks are counted from the start of the row, which is the start of the first sample only.
    if "chunked_attention" in (getattr(model_config, "layer_types", None) or ()):
        raise ConfigError(
            f"{key} packs several samples into one row, and model type {model_config.model_type} attends within chunks "
            f"of {model_config.attention_chunk_size:,} positions of a row, wherever a sample begins: {NOT_PACKED}"
        )


def sees_padding(model_config: Any) -> bool:
    """Whether right padding must be masked. Under purely causal attention no token sees the padding after it, and
    without a mask torch uses its fused kernels; with one, attention computes the full square of a row.

    The packable families are purely causal; tests/policy/test_attention.py compares each of them.
    """
    return model_config.model_type not in PACKABLE


def has_plain_attention(model_config: Any) -> bool:
    """Whether a model's configuration asks for plain causal attention over all earlier positions in every layer."""
    kinds = set(getattr(model_config, "layer_types", None) or ["full_attention"])
    slides = getattr(model_config, "use_sliding_window", True) and getattr(model_config, "sliding_window", None)
    return model_config.model_type in MODEL_TYPES and kinds == {"full_attention"} and not slides


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompts:
    """Layout of a row: Q prompts of L positions, then B completions of C positions, each padded on the right."""

    prompts: int
    prompt_width: int
    prompt_of_B: Tensor
    """[B] index of the prompt that each completion continues."""
    prompt_mask_BL: Tensor
    """[B, L] whether the position in the completion's prompt holds a token."""

    def to(self, device: torch.device) -> SharedPrompts:
        return replace(self, prompt_of_B=self.prompt_of_B.to(device), prompt_mask_BL=self.prompt_mask_BL.to(device))


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v over the keys not in `drop`, by plain matrix products. For the short rows of a CPU's
    micro-batches it is several times as fast as torch's fused kernel, whose backward pass dominates there.

    Scores and softmax are float32. With P the probabilities and g = ∂L/∂out: ∂L/∂v = Pᵀ g, and with
    dS = P ∘ (g vᵀ − rowsum(P ∘ g vᵀ)) · scale: ∂L/∂q = dS k, ∂L/∂k = dSᵀ q. P is saved in the precision of v.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, drop: Tensor, scale: float) -> Tensor:
        rows, heads, queries, size = q.shape
        kv_heads, keys = k.shape[1:3]
        # Query heads that share keys and values are treated as additional queries of one head.
        q = q.reshape(rows, kv_heads, -1, size)
        scores = (q.float() * scale) @ k.float().mT
        scores.view(rows, kv_heads, -1, queries, keys).masked_fill_(drop[:, None, None], float("-inf"))
        probs = scores.softmax(dim=-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, probs)
        ctx.scale = scale
        return (probs @ v).view(rows, heads, queries, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, probs = ctx.saved_tensors
        shape = grad.shape
        grad = grad.reshape(q.shape)
        grad_scores = torch._softmax_backward_data(grad @ v.mT, probs, -1, probs.dtype).mul_(ctx.scale)
        return (grad_scores @ k).view(shape), grad_scores.mT @ q, probs.mT @ grad, None, None


def attend(q: Tensor, k: Tensor, v: Tensor, drop: Tensor, scale: float) -> Tensor:
    """Attention of R rows.

    Args:
        q: [R, heads, T, D].
        k: [R, kv heads, S, D]; heads is a multiple of kv heads.
        v: as k.
        drop: [R or 1, T, S] which keys a query must not see.
        scale: factor on the scores.

    Returns:
        [R, heads, T, D].
    """
    return _Attention.apply(q, k, v, drop, scale)  # type: ignore[no-any-return, no-untyped-call]


def _blocks(x: Tensor, layout: SharedPrompts) -> tuple[Tensor, Tensor]:
    """The row, [1, heads, T, D] → (its prompts, [Q, heads, L, D]; its completions, [B, heads, C, D])."""
    heads, size = x.shape[1], x.shape[3]
    cut = layout.prompts * layout.prompt_width
    of_prompts = x[0, :, :cut].view(heads, layout.prompts, -1, size).transpose(0, 1)
    of_completions = x[0, :, cut:].reshape(heads, len(layout.prompt_of_B), -1, size).transpose(0, 1)
    return of_prompts, of_completions


def positions_after(count: int, device: torch.device) -> Tensor:
    """[count, count] the upper triangle: the pairs of query and later key that causal attention drops."""
    return torch.ones(count, count, dtype=torch.bool, device=device).triu(1)


def shared_prompt_attention(query: Tensor, key: Tensor, value: Tensor, layout: SharedPrompts, scaling: float) -> Tensor:
    """`attention_of_layout` over a row of shared prompts: prompts attend to themselves, completions to their prompt and
    to themselves."""
    q_prompt, q_own = _blocks(query, layout)
    k_prompt, k_own = _blocks(key, layout)
    v_prompt, v_own = _blocks(value, layout)
    # Padding is on the right, so causal attention never sees it.
    of_prompts = attend(q_prompt, k_prompt, v_prompt, positions_after(layout.prompt_width, query.device)[None], scaling)
    width = q_own.shape[2]
    drop_prompt = ~layout.prompt_mask_BL[:, None].expand(-1, width, -1)
    drop_own = positions_after(width, query.device).expand(len(layout.prompt_of_B), -1, -1)
    # `index_select`, because the gradient of `[]` indexing is accumulated on a CPU in nondeterministic thread order.
    of_completions = attend(
        q_own,
        torch.cat([k_prompt.index_select(0, layout.prompt_of_B), k_own], dim=2),
        torch.cat([v_prompt.index_select(0, layout.prompt_of_B), v_own], dim=2),
        torch.cat([drop_prompt, drop_own], dim=2),
        scaling,
    )
    rows = [block.transpose(1, 2).flatten(0, 1) for block in (of_prompts, of_completions)]
    return torch.cat(rows)


# Attention over samples packed end to end in one row. On CUDA this is torch's variable-length kernel, which is flash
# attention: no padding, no mask, and no copies of keys and values for the heads that share them. On a CPU, plain matrix
# products compute the same, piece by piece. A piece is a sample or, if a group's prompt is in the row only once, that
# prompt or one of its completions. It attends to its list of keys, which ends with its own.
# Shapes: S pieces in the row, K keys of all pieces, t tokens of one piece, H heads.

VARLEN = "varlen"
# What flash attention supports: head sizes, and the lowest compute capability.
LARGEST_HEAD = 256
HEAD_STEP = 8
CAPABILITY = (8, 0)


PACKED_SHARED = "packed_shared"
"""The layout of a packed row that holds every prompt once."""
SHARING = (SHARED_PROMPT, PACKED_SHARED)
"""The layouts that compute a group's prompt only once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Where the pieces of a row are, and what each attends to."""

    bounds: Tensor
    """[S + 1] int32 cumulative lengths of the pieces. A tensor, as the compiler would specialize on Python integers."""
    longest: int
    """Tokens in the longest piece."""
    key_bounds: Tensor
    """[S + 1] int32 cumulative counts of the pieces' keys."""
    most_keys: int
    """Largest number of keys of any piece."""
    keys_K: Tensor | None = None
    """[K] the position of each key, piece by piece; None if every piece attends only to its own keys, as in the row."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> PackedRows:
        """Pieces of these lengths that attend only to themselves."""
        bounds, longest = _bounds(lengths), max(lengths)
        return cls(bounds=bounds, longest=longest, key_bounds=bounds, most_keys=longest)

    @classmethod
    def continuing(cls, lengths: Sequence[int], continued: Sequence[int | None]) -> PackedRows:
        """Pieces of these lengths; `continued` gives the index of the earlier piece that each continues, or None."""
        ends = list(itertools.accumulate(lengths, initial=0))
        own = [torch.arange(start, end) for start, end in itertools.pairwise(ends)]
        keys = [
            one if before is None else torch.cat([own[before], one]) for one, before in zip(own, continued, strict=True)
        ]
        counts = [len(one) for one in keys]
        return cls(
            bounds=_bounds(lengths),
            longest=max(lengths),
            key_bounds=_bounds(counts),
            most_keys=max(counts),
            keys_K=torch.cat(keys),
        )

    def to(self, device: torch.device) -> PackedRows:
        tensors = {"bounds": self.bounds, "key_bounds": self.key_bounds, "keys_K": self.keys_K}
        there = {name: one.to(device, non_blocking=True) for name, one in tensors.items() if one is not None}
        return replace(self, **there)  # type: ignore[arg-type]


def _bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)


def is_computed(model_config: Any, dtype: str, device_type: str) -> bool:
    """Whether `VARLEN` can compute a model with this configuration, in `dtype` (`model.dtype`) on `cpu` or `cuda`."""
    if not has_plain_attention(model_config):
        return False
    head = getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
    fits = dtype == "bfloat16" and head % HEAD_STEP == 0 and head <= LARGEST_HEAD
    # Without CUDA on this machine the call is an estimate for another, which is assumed to be capable.
    able = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= CAPABILITY
    return device_type == "cpu" or (fits and able)


def by_products(q_THD: Tensor, k_KHD: Tensor, v_KHD: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """[T, H, D] attention of each piece to its keys by plain matrix products; keys and values may have fewer heads."""
    queries, keys = (bounds.diff().tolist() for bounds in (rows.bounds, rows.key_bounds))
    outputs = []
    for q, k, v in zip(q_THD.split(queries), k_KHD.split(keys), v_KHD.split(keys), strict=True):
        drop = positions_after(len(k), q.device)[None, len(k) - len(q) :]
        q_1HtD, k_1HtD, v_1HtD = (x_tHD.transpose(0, 1)[None] for x_tHD in (q, k, v))
        outputs.append(attend(q_1HtD, k_1HtD, v_1HtD, drop, scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def by_kernel(q_THD: Tensor, k_KHD: Tensor, v_KHD: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """Same as `by_products`, using the kernel of `torch.nn.attention.varlen`."""
    from torch.nn.attention.varlen import varlen_attn  # imported only when used, as it loads torch's compiler

    options: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    else:  # before torch 2.13
        shared_by = q_THD.shape[1] // k_KHD.shape[1]
        k_KHD, v_KHD = (x_KHD.repeat_interleave(shared_by, dim=1) for x_KHD in (k_KHD, v_KHD))
    # This window is how torch 2.11 and later spell causal: all keys before and none after, with a piece's last query
    # aligned to its last key.
    options |= {"scale": scale, "window_size": (-1, 0)}
    sizes = (rows.bounds, rows.key_bounds, rows.longest, rows.most_keys)
    output: Any = varlen_attn(q_THD, k_KHD, v_KHD, *sizes, **options)
    return output  # type: ignore[no-any-return]


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedRows, scaling: float) -> Tensor:
    """`attention_of_layout` over a row of packed pieces."""
    compute = by_products if query.device.type == "cpu" else by_kernel
    q_THD, k_KHD, v_KHD = (x[0].transpose(0, 1) for x in (query, key, value))
    if layout.keys_K is not None:
        # In float32, so that the gradients a prompt's keys receive from all its completions are summed in float32.
        k_KHD, v_KHD = (x_THD.float().index_select(0, layout.keys_K).to(x_THD.dtype) for x_THD in (k_KHD, v_KHD))
    return compute(q_THD, k_KHD, v_KHD, layout, scaling)


def attention_of_layout(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: SharedPrompts | PackedRows,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' attention interface, over a row that several samples share.

    Args:
        module: the attention layer; not used.
        query: [1, heads, T, D].
        key: [1, kv heads, T, D].
        value: as key.
        attention_mask: not used; none is built for these layouts.
        scaling: factor on the scores.
        layout: which positions of T belong to what.

    Returns:
        ([1, T, heads, D], None).
    """
    if isinstance(layout, SharedPrompts):
        return shared_prompt_attention(query, key, value, layout, scaling)[None], None
    return packed_attention(query, key, value, layout, scaling)[None], None


AttentionInterface.register(SHARED_PROMPT, attention_of_layout)
AttentionInterface.register(VARLEN, attention_of_layout)
