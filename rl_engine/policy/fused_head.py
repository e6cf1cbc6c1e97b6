"""Logits of a chunk on a GPU → log-probabilities, entropies and the pulls on them, in few passes over the logits.

A logit takes part in a few thousand multiplications, 6 picoseconds of an H100's; written and read in float32 by one
operation after the other it costs 45 bytes of traffic, 13 picoseconds. Compiled into one kernel each chunk is read
three times and written once, in 16 bits. The legend of shapes is in `rl_engine/learner/advantages.py`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Chunk = tuple[Tensor, Tensor, Tensor, Tensor]


def head_chunk(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> Chunk:
    """The policy of each row, and what each logit pulls.

    Args:
        raw_nV: [n, V] hidden · W + b.
        target_n: [n] token ids.
        divisor: see `LogitTransform`.
        cap: see `LogitTransform`.

    Returns:
        ([n] log-probability of the target and [n] entropy, nats, float32; [n, V] (onehot − p)·s and [n, V] p·(log p +
        H)·s, in the precision of `raw_nV`), with s the cap's slope.
    """
    logits_nV = raw_nV.float() / divisor
    slope_nV: Tensor | float = 1.0
    if cap is not None:
        bent_nV = torch.tanh(logits_nV / cap)
        logits_nV, slope_nV = bent_nV * cap, 1 - bent_nV.square()
    all_nV = logits_nV.log_softmax(dim=-1)
    probs_nV = all_nV.exp()
    entropy_n = -(probs_nV * all_nV).sum(dim=-1)
    logprob_n = all_nV.gather(1, target_n[:, None]).squeeze(1)
    is_target_nV = torch.arange(raw_nV.shape[1], device=raw_nV.device) == target_n[:, None]
    # The difference is formed before it is rounded: where a token is nearly certain little is left of it.
    pull_nV = torch.where(is_target_nV, 1 - probs_nV, -probs_nV) * slope_nV
    entropy_pull_nV = probs_nV * (all_nV + entropy_n[:, None]) * slope_nV
    return logprob_n, entropy_n, pull_nV.to(raw_nV.dtype), entropy_pull_nV.to(raw_nV.dtype)


def only(parts: int) -> Callable[..., tuple[Tensor, ...]]:
    """`head_chunk` for its first results: what is not asked for is not written."""

    def first(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> tuple[Tensor, ...]:
        return head_chunk(raw_nV, target_n, divisor, cap)[:parts]

    return first


@functools.cache
def compiled(parts: int) -> Callable[..., tuple[Tensor, ...]]:
    """`only(parts)` as one kernel; where torch's compiler does not work here, the same step by step, and it is said."""
    chosen: list[Any] = [torch.compile(only(parts), fullgraph=True)]

    def call(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> tuple[Tensor, ...]:
        # Chunks differ in rows, and are not to be compiled for each number of them.
        for tensor in (raw_nV, target_n):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            result: tuple[Tensor, ...] = chosen[0](raw_nV, target_n, divisor, cap)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(
                f"torch.compile does not work here, so the output embedding's chunks take several passes over their "
                f"logits: {str(error).strip().splitlines()[0]}",
                stacklevel=2,
            )
            chosen[0] = only(parts)
            result = chosen[0](raw_nV, target_n, divisor, cap)
        return result

    return call
