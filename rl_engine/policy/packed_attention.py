"""Queries, keys and values of samples that lie end to end in one row → causal attention within each of them.

On CUDA it is torch's own kernel for sequences of any length, which is flash attention: no position is padding, no mask
is made, and heads that share keys and values need no copies of them. On a CPU plain products compute the same, sample
by sample. Shapes beyond the legend of `rl_engine/learner/advantages.py`: S samples of the row, t tokens of one, H heads
of size D.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rl_engine.policy.attention import attend, has_plain_attention, positions_after

NAME = "varlen"
# What the kernel computes: flash attention's precisions, sizes of a head and cards.
LARGEST_HEAD = 256
HEAD_STEP = 8
CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Where the samples of a row are."""

    lengths: tuple[int, ...]
    """Tokens of each."""
    bounds: Tensor
    """[S + 1] int32, where each begins and the last one ends."""

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> PackedRows:
        ends = torch.tensor((0, *lengths)).cumsum(0)
        return cls(lengths=lengths, bounds=ends.to(torch.int32))

    def to(self, device: torch.device) -> PackedRows:
        return replace(self, bounds=self.bounds.to(device, non_blocking=True))


def is_computed(model_config: Any, dtype: str, device_type: str) -> bool:
    """Whether this attention is for models of that configuration, computing in `model.dtype`, on `cpu` or `cuda`."""
    if not has_plain_attention(model_config):
        return False
    head = getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
    fits = dtype == "bfloat16" and head % HEAD_STEP == 0 and head <= LARGEST_HEAD
    # An estimate for CUDA may be made where there is none.
    able = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= CAPABILITY
    return device_type == "cpu" or (fits and able)


def by_products(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """[T, H, D] attention of each sample by plain matrix products; keys and values may have fewer heads."""
    outputs = []
    for q, k, v in zip(*(x_THD.split(rows.lengths) for x_THD in (q_THD, k_THD, v_THD)), strict=True):
        drop = positions_after(len(q), q.device)[None]
        q_1HtD, k_1HtD, v_1HtD = (x_tHD.transpose(0, 1)[None] for x_tHD in (q, k, v))
        outputs.append(attend(q_1HtD, k_1HtD, v_1HtD, drop, scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def by_kernel(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rows: PackedRows, scale: float) -> Tensor:
    """As `by_products`, by the kernel of `torch.nn.attention.varlen`."""
    from torch.nn.attention.varlen import varlen_attn  # loads torch's compiler, so where it is used alone

    options: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    else:  # before torch 2.13
        shared_by = q_THD.shape[1] // k_THD.shape[1]
        k_THD, v_THD = (x_THD.repeat_interleave(shared_by, dim=1) for x_THD in (k_THD, v_THD))
    longest = max(rows.lengths)
    # Everything before and nothing after: the window is how torch 2.11 and later spell causal.
    options |= {"scale": scale, "window_size": (-1, 0)}
    output: Any = varlen_attn(q_THD, k_THD, v_THD, rows.bounds, rows.bounds, longest, longest, **options)
    return output  # type: ignore[no-any-return]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: PackedRows,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface over a row of samples end to end.

    Args:
        module: the attention layer; not used.
        query: [1, heads, T, D].
        key: [1, kv heads, T, D].
        value: as key.
        attention_mask: none is made for this layout.
        scaling: of the scores.
        layout: where the samples are.

    Returns:
        ([1, T, heads, D], None).
    """
    compute = by_products if query.device.type == "cpu" else by_kernel
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    return compute(q_THD, k_THD, v_THD, layout, scaling)[None], None


AttentionInterface.register(NAME, packed_attention)
