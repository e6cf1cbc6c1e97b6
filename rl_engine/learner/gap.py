"""Sampler against learner: how far apart they are on sampled tokens, and how far they may be before a run must stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from rl_engine.config import Config
from rollout.closeness import KL_LIMITS, LOGPROB_LIMITS, KlEstimate, chance

BEYOND_LIMIT = 1e-3
"""Largest share of tokens beyond it: among millions there is one whose logits two kernels round apart, and a sampler
with another adapter differs everywhere."""

# A learner that moved by less may leave a sampler's answers as they were. Honest float32 samplers are seen within 1e-4
# of the learner (tests/rollout/vllm/test_engine.py); logits between 8 and 16 are 2⁻⁴ apart in bfloat16.
RESOLUTION = {"float32": 1e-4, "bfloat16": 5e-2}
"""The smallest change of a log-probability that a sampler is sure to show, by `model.dtype`, nats."""


class SamplerGapError(RuntimeError):
    """The sampler does not sample from the policy that is being trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGap:
    """One token as the sampler and the learner see it, and where it is."""

    token: int
    """Its id."""
    place: int
    """Which token of its completion, from 1."""
    tokens: int
    """The tokens of that completion."""
    origin: str
    """Which completion."""
    sampler: float
    """Log-probability, nats."""
    learner: float

    def describe(self) -> str:
        return (
            f"token {self.place} of {self.tokens} (id {self.token}) of {self.origin or 'a completion'}: sampler "
            f"{self.sampler:.4g}, learner {self.learner:.4g} nats"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerGap:
    """How far the sampler q and the learner p are apart, on tokens that the sampler drew."""

    kl: float
    """½·mean((log q − log p)²), nats a token."""
    kl_error: float
    """Its standard error: √(Σ c²)/n of what each of n tokens adds, c = ½ (log q − log p)²."""
    kl_v1: float
    """mean(log q − log p), nats a token: the plain estimate of KL(q ‖ p)."""
    kl_v3: float
    """mean(p/q − 1 − log p/q), nats a token: never negative, unbiased for KL(q ‖ p)."""
    logprob_max: float
    """Largest |log q − log p| of one token, nats."""
    tokens: int
    beyond: float = 0.0
    """Share of tokens whose |log q − log p| is over the limit of one token."""
    worst: TokenGap | None = None
    """The token of the largest."""

    @classmethod
    def merged(cls, gaps: Sequence[Self]) -> Self:
        """The gap on the tokens of all of them."""
        tokens = sum(gap.tokens for gap in gaps)
        return cls(
            kl=sum(gap.kl * gap.tokens for gap in gaps) / tokens,
            kl_error=math.hypot(*(gap.kl_error * gap.tokens for gap in gaps)) / tokens,
            kl_v1=sum(gap.kl_v1 * gap.tokens for gap in gaps) / tokens,
            kl_v3=sum(gap.kl_v3 * gap.tokens for gap in gaps) / tokens,
            logprob_max=max(gap.logprob_max for gap in gaps),
            tokens=tokens,
            beyond=sum(gap.beyond * gap.tokens for gap in gaps) / tokens,
            worst=max(gaps, key=lambda gap: gap.logprob_max).worst,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GapLimits:
    """How far sampler and learner may be apart. Both limits are of what is expected: a step of few tokens may be over
    them by as much as chance explains (`rollout/closeness.py`)."""

    kl: float
    """Largest `sampler/kl`, nats a token."""
    logprob: float
    """What one token may differ by, nats; a share of `BEYOND_LIMIT` may differ by more."""

    def check(self, gap: SamplerGap) -> None:
        """Raises `SamplerGapError` when the gap is over a limit or no number."""
        share_margin = chance(BEYOND_LIMIT, gap.tokens, largest=1.0)
        kl = KlEstimate(kl=gap.kl, error=gap.kl_error, tokens=gap.tokens)
        if kl.within(self.kl, self.logprob) and gap.beyond <= BEYOND_LIMIT + share_margin:
            return
        worst = gap.worst
        where = f", at {worst.describe()}" if worst else ""
        if worst is not None and math.isnan(worst.learner):
            raise SamplerGapError(
                f"the learner's own log-probability is no number: {worst.describe()}. Nothing was updated. The sampler "
                "is not the cause: the policy has learned itself out of numbers, so go on from an earlier version with "
                "a lower optim.lr."
            )
        kl_margin = kl.margin(self.kl, self.logprob)
        raise SamplerGapError(
            f"the sampler's log-probabilities are not the learner's: over {gap.tokens:,} tokens, sampler/kl "
            f"{gap.kl:.3g} (limit {self.kl:.3g}, plus {kl_margin:.3g} that chance may add) and {gap.beyond:.2%} of "
            f"them more than {self.logprob:.3g} nats apart (limit {BEYOND_LIMIT:.1%}, plus {share_margin:.2%} that "
            f"chance may add), at most {gap.logprob_max:.3g}{where}. Nothing was updated. Either the last adapter did "
            "not reach the sampler, or the two run the model at different precision; the limits are rollout.max_kl and "
            "rollout.max_logprob_gap."
        )


def gap_limits(config: Config) -> GapLimits:
    """The limits of a run."""
    dtype, rollout = config.model.precision, config.rollout
    return GapLimits(
        kl=KL_LIMITS[dtype] if rollout.max_kl == "auto" else rollout.max_kl,
        logprob=LOGPROB_LIMITS[dtype] if rollout.max_logprob_gap == "auto" else rollout.max_logprob_gap,
    )


def furthest(rows: Iterable[Iterable[float]], others: Iterable[Iterable[float]], *, but: int = 0) -> float:
    """The largest difference of two tables of log-probabilities, nats, after the `but` largest where there are more;
    NaN where any is no number."""
    gaps = [abs(p - q) for row, other in zip(rows, others, strict=True) for p, q in zip(row, other, strict=True)]
    # Not the largest of all: NaN compares with nothing.
    return math.nan if any(map(math.isnan, gaps)) else sorted(gaps)[max(-1 - but, -len(gaps))]


def check_gap(gap: SamplerGap, limits: GapLimits | None) -> None:
    """Raises `SamplerGapError` when the gap is over the limits.

    Without limits the sampler has been checked against the versions that sampled, and what lies between is what was
    learned since: any amount, but a number.
    """
    if limits is not None:
        limits.check(gap)
    elif math.isnan(gap.kl):
        raise SamplerGapError(
            "a log-probability of the sampler or the learner is no number (sampler/kl nan). Nothing was updated."
        )
