"""Sampler against learner: how far their log-probabilities of sampled tokens differ, and at what gap a run stops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from rl_engine.config import Config
from rollout.closeness import KL_LIMITS, LOGPROB_LIMITS, KlEstimate, chance

BEYOND_LIMIT = 1e-3
"""Largest share of tokens over the per-token limit. Among millions of tokens, a few have logits that two kernels round
differently; a sampler with the wrong adapter differs everywhere."""

# If the learner moved by less, a sampler's answers may not change. Correct float32 samplers are observed within 1e-4
# of the learner (tests/rollout/vllm/test_engine.py); bfloat16 logits between 8 and 16 are spaced 2⁻⁴ apart.
RESOLUTION = {"float32": 1e-4, "bfloat16": 5e-2}
"""The smallest change in a log-probability that a sampler is sure to show, by `model.dtype`, nats."""


class SamplerGapError(RuntimeError):
    """The sampler does not sample from the policy that is being trained."""


class DivergedError(SamplerGapError):
    """The policy itself computes NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGap:
    """One token's position and its log-probability under the sampler and under the learner."""

    token: int
    """Token id."""
    place: int
    """Position in its completion, from 1."""
    tokens: int
    """Length of that completion."""
    origin: str
    """Which completion of which problem."""
    sampler: float
    """Log-probability, nats; so is `learner`."""
    learner: float

    def describe(self) -> str:
        return (
            f"token {self.place} of {self.tokens} (id {self.token}) of {self.origin or 'a completion'}: sampler "
            f"{self.sampler:.4g}, learner {self.learner:.4g} nats"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerGap:
    """How far apart the sampler q and the learner p are on tokens that the sampler drew."""

    kl: float
    """½·mean((log q − log p)²), nats per token."""
    kl_error: float
    """Standard error of `kl`: √(Σ c²)/n, where c = ½ (log q − log p)² is the contribution of each of the n tokens."""
    kl_v1: float
    """mean(log q − log p), nats per token: the plain estimate of KL(q ‖ p)."""
    kl_v3: float
    """mean(p/q − 1 − log p/q), nats per token: never negative, unbiased for KL(q ‖ p)."""
    logprob_max: float
    """Largest |log q − log p| of any token, nats."""
    tokens: int
    beyond: float = 0.0
    """Share of tokens whose |log q − log p| exceeds the per-token limit."""
    worst: TokenGap | None = None
    """The token with the largest |log q − log p|."""

    @classmethod
    def merged(cls, gaps: Sequence[Self]) -> Self:
        """The gap over the tokens of all `gaps`."""
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
    """How far apart sampler and learner may be. Both limits bound an expected value: a step with few tokens may exceed
    them by as much as chance explains (`rollout/closeness.py`)."""

    kl: float
    """Largest `sampler/kl`, nats per token."""
    logprob: float
    """Largest difference of one token, nats; a share of up to `BEYOND_LIMIT` of the tokens may differ by more."""

    def check(self, gap: SamplerGap) -> None:
        """Raise `SamplerGapError` if the gap is over a limit or NaN."""
        share_margin = chance(BEYOND_LIMIT, gap.tokens, largest=1.0)
        kl = KlEstimate(kl=gap.kl, error=gap.kl_error, tokens=gap.tokens)
        if kl.within(self.kl, self.logprob) and gap.beyond <= BEYOND_LIMIT + share_margin:
            return
        worst = gap.worst
        where = f", at {worst.describe()}" if worst else ""
        if worst is not None and math.isnan(worst.learner):
            raise DivergedError(
                f"the learner's log-probability is NaN at {worst.describe()}. Nothing was updated. Training has "
                "diverged, and the sampler is not the cause."
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
    """The limits of a run, with `auto` resolved by precision."""
    dtype, rollout = config.model.precision, config.rollout
    return GapLimits(
        kl=KL_LIMITS[dtype] if rollout.max_kl == "auto" else rollout.max_kl,
        logprob=LOGPROB_LIMITS[dtype] if rollout.max_logprob_gap == "auto" else rollout.max_logprob_gap,
    )


def furthest(rows: Iterable[Iterable[float]], others: Iterable[Iterable[float]], *, but: int = 0) -> float:
    """The largest difference between two tables of log-probabilities, nats, ignoring the `but` largest if there are
    more than that; NaN if any entry is NaN."""
    gaps = [abs(p - q) for row, other in zip(rows, others, strict=True) for p, q in zip(row, other, strict=True)]
    # NaN is handled separately because sorting cannot order it.
    return math.nan if any(map(math.isnan, gaps)) else sorted(gaps)[max(-1 - but, -len(gaps))]


def check_gap(gap: SamplerGap, limits: GapLimits | None) -> None:
    """Raise `SamplerGapError` if the gap is over the limits.

    `limits` is None when the sampler has already been checked against the versions that sampled. The remaining gap is
    what was learned since, which may be any amount but not NaN.
    """
    if limits is not None:
        limits.check(gap)
    elif math.isnan(gap.kl):
        raise DivergedError(
            "sampler/kl is NaN: the sampler or the learner returned a NaN log-probability. Nothing was updated."
        )
