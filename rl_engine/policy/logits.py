"""A model's configuration → what it does to hidden · W before the softmax: multipliers, divisors, soft caps; and a
softmax of a chunk of logits that takes few passes on a GPU."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Keys of transformers' text configurations → the multiplier of the logits that each stands for.
MULTIPLIERS: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,
    "lm_head_multiplier": lambda value: value,
    "output_multiplier": lambda value: value,
    "logits_scaling": lambda value: 1 / value,
}
# HyperCLOVA X multiplies by the number that Granite and MiniCPM divide by.
TIMES_SCALING = frozenset({"hyperclovax"})
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """With x = W h + b: z = x / divisor, or z = c · tanh(x / (divisor · c)) with a cap c.

    Example: `LogitTransform(divisor=8.0)` is Granite's, `LogitTransform(cap=30.0)` Gemma 2's.
    """

    divisor: float = 1.0
    cap: float | None = None

    def tempered(self, temperature: float) -> LogitTransform:
        """This transform followed by a division by the sampler's temperature."""
        return LogitTransform(
            divisor=self.divisor * temperature, cap=None if self.cap is None else self.cap / temperature
        )

    def apply(self, raw_nV: Tensor) -> Tensor:
        """[n, V] float32 raw logits → [n, V] logits to take the softmax of."""
        if self.divisor != 1:
            raw_nV = raw_nV / self.divisor
        return raw_nV if self.cap is None else torch.tanh(raw_nV / self.cap) * self.cap

    def cap_slope(self, logits_nV: Tensor) -> Tensor | None:
        """[n, V] the cap's derivative at the point where it returned `logits_nV`; None without a cap."""
        return None if self.cap is None else 1 - (logits_nV / self.cap).square()


PLAIN = LogitTransform()


def transform_of(model_config: Any) -> LogitTransform:
    """What a model with this configuration does to its logits, as far as the configuration says.

    `rl_engine/policy/agreement.py` checks that there is nothing more.
    """
    text = model_config.get_text_config()
    factors = {name: getattr(text, name, None) for name in MULTIPLIERS}
    multiplier = math.prod(MULTIPLIERS[name](value) for name, value in factors.items() if value is not None)
    if text.model_type in TIMES_SCALING:
        multiplier = text.logits_scaling
    caps = [float(getattr(text, name)) for name in CAPS if getattr(text, name, None) is not None]
    return LogitTransform(divisor=1 / multiplier, cap=caps[0] if caps else None)


# On a GPU a logit takes part in a few thousand multiplications, which is 6 picoseconds on an H100. Writing and reading
# it in float32, one operation after another, costs 45 bytes of memory traffic, 13 picoseconds. Compiled into one
# kernel, each chunk is read three times and written once, in 16 bits.

Chunk = tuple[Tensor, Tensor, Tensor, Tensor]


def head_chunk(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> Chunk:
    """Log-probability and entropy of each row, and their gradients at the logits, up to sign and divisor.

    Args:
        raw_nV: [n, V] hidden · W + b.
        target_n: [n] token ids.
        divisor: see `LogitTransform`.
        cap: see `LogitTransform`.

    Returns:
        ([n] log-probability of the target and [n] entropy, nats, float32; [n, V] (onehot − p)·s and [n, V] p·(log p +
        H)·s, in the precision of `raw_nV`), where s is the cap's slope.
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
    # Subtract before rounding: for a nearly certain token the difference is tiny.
    pull_nV = torch.where(is_target_nV, 1 - probs_nV, -probs_nV) * slope_nV
    entropy_pull_nV = probs_nV * (all_nV + entropy_n[:, None]) * slope_nV
    return logprob_n, entropy_n, pull_nV.to(raw_nV.dtype), entropy_pull_nV.to(raw_nV.dtype)


def only(parts: int) -> Callable[..., tuple[Tensor, ...]]:
    """`head_chunk` limited to its first `parts` results; the others are never written to memory."""

    def first(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> tuple[Tensor, ...]:
        return head_chunk(raw_nV, target_n, divisor, cap)[:parts]

    return first


def compiler_message(error: Exception) -> str:
    """The first two lines of an error of torch's compiler: which part of it failed, and why."""
    return " ".join(str(error).strip().splitlines()[:2])


@functools.cache
def compiled(parts: int) -> Callable[..., tuple[Tensor, ...]]:
    """`only(parts)` as one kernel. If torch's compiler does not work here, it warns and runs uncompiled."""
    chosen: list[Any] = [torch.compile(only(parts), fullgraph=True)]

    def call(raw_nV: Tensor, target_n: Tensor, divisor: float, cap: float | None) -> tuple[Tensor, ...]:
        # The number of rows varies between chunks; mark it dynamic to avoid recompiling for each.
        for tensor in (raw_nV, target_n):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            result: tuple[Tensor, ...] = chosen[0](raw_nV, target_n, divisor, cap)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(
                f"torch.compile does not work here, so the output embedding's chunks take several passes over their "
                f"logits: {compiler_message(error)}",
                stacklevel=2,
            )
            chosen[0] = only(parts)
            result = chosen[0](raw_nV, target_n, divisor, cap)
        return result

    return call
