"""A model's configuration → what it does to hidden · W before the softmax: multipliers, divisors, soft caps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What a factor in a text configuration does to the logits. transformers spells the same things in these ways.
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
    """z = x / divisor, and with a cap c then z = c · tanh(x / (divisor · c)), of x = W h + b.

    Example: `LogitTransform(divisor=8.0)` is Granite's, `LogitTransform(cap=30.0)` Gemma 2's.
    """

    divisor: float = 1.0
    cap: float | None = None

    def tempered(self, temperature: float) -> LogitTransform:
        """Followed by a division by the sampler's temperature."""
        return LogitTransform(
            divisor=self.divisor * temperature, cap=None if self.cap is None else self.cap / temperature
        )

    def apply(self, raw_nV: Tensor) -> Tensor:
        """[n, V] float32 → what the softmax is taken of."""
        if self.divisor != 1:
            raw_nV = raw_nV / self.divisor
        return raw_nV if self.cap is None else torch.tanh(raw_nV / self.cap) * self.cap

    def cap_slope(self, logits_nV: Tensor) -> Tensor | None:
        """[n, V] the derivative of the cap where it gave `logits_nV`; None without one."""
        return None if self.cap is None else 1 - (logits_nV / self.cap).square()


PLAIN = LogitTransform()


def transform_of(model_config: Any) -> LogitTransform:
    """What a model with this configuration does to its logits, as far as the configuration names it.

    `rl_engine/policy/agreement.py` finds out whether that is all.
    """
    text = model_config.get_text_config()
    factors = {name: getattr(text, name, None) for name in MULTIPLIERS}
    multiplier = math.prod(MULTIPLIERS[name](value) for name, value in factors.items() if value is not None)
    if text.model_type in TIMES_SCALING:
        multiplier = text.logits_scaling
    caps = [float(getattr(text, name)) for name in CAPS if getattr(text, name, None) is not None]
    return LogitTransform(divisor=1 / multiplier, cap=caps[0] if caps else None)
