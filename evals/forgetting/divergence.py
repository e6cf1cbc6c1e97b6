"""The base model's own completions → how far a policy has moved from it: KL(base ‖ policy) in nats per token.

Shapes: P prompts, T tokens of all completions of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.scoring.estimators import bootstrap
from rollout.closeness import KL_LIMITS, LOGPROB_LIMITS, KlEstimate
from rollout.config import SamplingConfig
from rollout.engine import ScoringEngine
from rollout.types import AdapterRef, Prompt, RolloutGroup, by_group

Floats = NDArray[np.float64]

CHECKED_PROMPTS, CHECKED_TOKENS = 16, 32


class ScoringGapError(ValueError):
    """The engine scores its own samples with other log-probabilities than it sampled them with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL(base ‖ policy) of a completion divided by the mean length, in nats per token, by two estimators on the same
    tokens. Each has its 95 % interval, which is None for a single prompt."""

    kl: float
    """mean(log base − log policy): noisy, and may be negative."""
    interval: tuple[float, float] | None
    kl_k3: float
    """mean(r − 1 − log r), r = policy/base: the same expectation, since r − 1 has expectation zero; never negative, and
    less noisy while the two are close (Schulman 2020, "Approximating KL Divergence")."""
    interval_k3: tuple[float, float] | None
    prompts: int
    completions: int
    tokens: int


@dataclass(frozen=True, slots=True)
class BaseSamples:
    """The base model's completions, and its own log-probabilities of their tokens."""

    groups: list[RolloutGroup]
    logprobs_PT: list[Floats]


def sample_base(engine: ScoringEngine, prompts: Sequence[Prompt], sampling: SamplingConfig, seed: int) -> BaseSamples:
    """Sample the tokens over which the expectation is taken. `sampling` must have temperature 1 and no truncation."""
    assert sampling.temperature == 1
    assert not sampling.truncation()
    groups = engine.generate(prompts, sampling, None, [f"forgetting/{seed}/{i}" for i in range(len(prompts))])
    return BaseSamples(groups, _scored(engine, groups, None))


def divergence(engine: ScoringEngine, samples: BaseSamples, adapter: AdapterRef) -> Divergence:
    """KL(base ‖ adapter) on the base's samples.

    The base is scored in the same way as the adapter, because rounding differences between scoring and sampling would
    otherwise count as divergence.
    """
    log_r_PT = [q - p for p, q in zip(samples.logprobs_PT, _scored(engine, samples.groups, adapter), strict=True)]
    return estimate(log_r_PT, completions=sum(len(group.completions) for group in samples.groups))


def _scored(engine: ScoringEngine, groups: Sequence[RolloutGroup], adapter: AdapterRef | None) -> list[Floats]:
    """[P][T] log-probabilities of each group's tokens."""
    rows = [(group.prompt.token_ids, one.token_ids) for group in groups for one in group.completions]
    scores = by_group(groups, engine.score(rows, adapter))
    return [np.concatenate([one.logprobs for one in of_group]) for of_group in scores]


def estimate(log_r_PT: Sequence[Floats], completions: int) -> Divergence:
    """The divergence, computed from log policy − log base of each token that the base sampled."""
    tokens_P = np.array([len(log_r) for log_r in log_r_PT], dtype=np.float64)
    kl, interval = _per_token(np.array([-log_r.sum() for log_r in log_r_PT]), tokens_P)
    k3, interval_k3 = _per_token(np.array([(np.expm1(log_r) - log_r).sum() for log_r in log_r_PT]), tokens_P)
    return Divergence(
        kl=kl,
        interval=interval,
        kl_k3=k3,
        interval_k3=interval_k3,
        prompts=len(log_r_PT),
        completions=completions,
        tokens=int(tokens_P.sum()),
    )


def _per_token(sums_P: Floats, tokens_P: Floats) -> tuple[float, tuple[float, float] | None]:
    """Σ sums / Σ tokens, and its interval by a bootstrap over prompts, if there are several.

    The quotient is a ratio of means. Each prompt enters the bootstrap with its first-order contribution to the ratio,
    so that the mean of these is the ratio, and their spread is the ratio's (Cochran 1977, section 2.11).
    """
    ratio = sums_P.sum() / tokens_P.sum()
    added_P = ratio + (sums_P - ratio * tokens_P) / tokens_P.mean()
    return float(ratio), bootstrap(added_P) if len(added_P) > 1 else None


def check_scoring(
    engine: ScoringEngine,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    adapter: AdapterRef | None,
    dtype: str,
    seed: int,
) -> float:
    """½·mean((log q − log p)²), in nats, between a policy's log-probabilities in sampling and in scoring.

    Scoring takes a different path through the engine than sampling. Raises `ScoringGapError` if the two disagree.
    """
    few = prompts[:CHECKED_PROMPTS]
    short = sampling.model_copy(update={"n": 1, "max_tokens": min(CHECKED_TOKENS, sampling.max_tokens)})
    groups = engine.generate(few, short, adapter, [f"scoring/{seed}/{i}" for i in range(len(few))])
    sampled = np.concatenate([one.logprobs for group in groups for one in group.completions])
    gap_T = sampled - np.concatenate(_scored(engine, groups, adapter))
    # The limits that a training run sets between sampler and learner: beyond them, one of the two uses another adapter.
    limit, logprob = KL_LIMITS[dtype], LOGPROB_LIMITS[dtype]
    cost_T = np.square(gap_T) / 2
    found = KlEstimate(
        kl=float(cost_T.mean()),
        error=float(np.linalg.norm(cost_T)) / len(cost_T),
        tokens=len(cost_T),
    )
    if not found.within(limit, logprob):
        raise ScoringGapError(
            f"{adapter.key if adapter else 'the base model'}: the engine samples and scores differently, over "
            f"{found.tokens:,} tokens by {found.kl:.2g} nats where {dtype} allows {limit:.0e}, plus "
            f"{found.margin(limit, logprob):.2g} that chance may add; its scores cannot be trusted"
        )
    return found.kl
