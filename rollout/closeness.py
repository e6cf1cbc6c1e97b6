"""Log-probabilities of sampled tokens, computed twice → whether the two are as close as their precision allows.

What is compared is a mean over tokens, and its limit is one of the expectation: with few tokens the mean is above it by
chance. A single token far apart among a hundred says nothing yet; a hundred tokens a little apart do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Two float32 implementations differ by rounding alone. In bfloat16 the mean stays small while single unlikely tokens
# may be far apart; 0.01 is where runs were seen to stay stable.
KL_LIMITS = {"float32": 1e-6, "bfloat16": 1e-2}
"""Largest ½·E[(log q − log p)²] by `model.dtype`, nats a token."""
LOGPROB_LIMITS = {"float32": 1e-2, "bfloat16": 2.0}
"""Difference of one token's log-probabilities that few may be beyond, by `model.dtype`, nats."""

SIGMAS = 3
"""Standard errors that are put down to chance: of honest means at their limit one in seven hundred is further above."""


def chance(limit: float, tokens: int, *, largest: float) -> float:
    """How far the mean of one figure a token may be above `limit` though its expectation is not, where no figure is
    below 0 or above `largest`.

    Such a figure has a variance of at most `limit` · `largest`, whatever its distribution. One whole figure comes on
    top: where few are expected, a count of them is skewed, and its tail is longer by that than the standard error says
    (`largest` = 1 is the Poisson case).
    """
    return SIGMAS * math.sqrt(limit * largest / tokens) + largest / tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KlEstimate:
    """½·mean((log q − log p)²) of a few tokens, and what says how far it is to be trusted."""

    kl: float
    error: float
    """Its standard error, √(Σ c²)/n of what each of n tokens adds. About zero, not about their mean: one token alone,
    or two alike, know nothing of their spread."""
    tokens: int

    def within(self, limit: float, logprob: float) -> bool:
        """Whether it is at most `limit`, or above it by no more than chance, where one token may be `logprob` nats
        apart. What is no finite number never is."""
        return math.isfinite(self.kl) and self.kl <= limit + self.margin(limit, logprob)

    def margin(self, limit: float, logprob: float) -> float:
        """How far it may be above `limit` by chance: by its own error, and by no more than any distribution explains
        whose tokens are at most `logprob` nats apart. Another adapter agrees on most tokens and differs widely on some:
        its error is as large as the mean, and the second bound finds it."""
        return min(SIGMAS * self.error, chance(limit, self.tokens, largest=0.5 * logprob**2))
