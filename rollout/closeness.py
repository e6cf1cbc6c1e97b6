"""Two sets of log-probabilities of the same sampled tokens → whether they agree as closely as their precision allows.

The check compares a mean over tokens with a limit on its expectation, which a mean of few tokens can exceed by chance.
One large difference among a hundred tokens proves nothing yet; a small difference in each of a hundred tokens does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Two float32 implementations differ by rounding only. In bfloat16 the mean stays small although single unlikely tokens
# may differ widely; runs were seen to stay stable up to 0.01.
KL_LIMITS = {"float32": 1e-6, "bfloat16": 1e-2}
"""Largest ½·E[(log q − log p)²] by `model.dtype`, per token, in nats."""
LOGPROB_LIMITS = {"float32": 1e-2, "bfloat16": 2.0}
"""Difference of one token's log-probabilities that only few tokens may exceed, by `model.dtype`, in nats."""

SIGMAS = 3
"""Standard errors attributed to chance: a mean whose expectation is the limit exceeds it by more once in 700 times."""


def chance(limit: float, tokens: int, *, largest: float) -> float:
    """How far a mean over tokens may exceed `limit` by chance while its expectation does not, for values in
    [0, `largest`].

    The variance of such a value is at most `limit` · `largest`, whatever its distribution. One full value is added:
    the distribution of a small count is skewed, and its tail is longer by about that much than the standard error
    suggests (`largest` = 1 is the Poisson case).
    """
    return SIGMAS * math.sqrt(limit * largest / tokens) + largest / tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KlEstimate:
    """½·mean((log q − log p)²) over a few tokens, with its standard error."""

    kl: float
    error: float
    """Standard error, √(Σ c²)/n over the contributions c of n tokens. It is taken about zero, not about their mean: one
    token, or two equal ones, say nothing about the spread."""
    tokens: int

    def within(self, limit: float, logprob: float) -> bool:
        """Whether the estimate is at most `limit`, or above it by no more than chance if one token may differ by
        `logprob` nats. A non-finite estimate never is."""
        return math.isfinite(self.kl) and self.kl <= limit + self.margin(limit, logprob)

    def margin(self, limit: float, logprob: float) -> float:
        """How far the estimate may exceed `limit` by chance: by its own error, but by no more than any distribution can
        explain whose tokens differ by at most `logprob` nats. The second bound catches a wrong adapter, which agrees on
        most tokens and differs widely on some, so that the error is as large as the mean."""
        return min(SIGMAS * self.error, chance(limit, self.tokens, largest=0.5 * logprob**2))
