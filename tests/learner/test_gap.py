"""How far sampler and learner are apart, against what may be, by hand."""

from __future__ import annotations

import math

import pytest

from rl_engine.config import load_config
from rl_engine.learner.gap import GapLimits, SamplerGap, SamplerGapError, check_gap, gap_limits

LIMITS = GapLimits(kl=1e-3, logprob=0.5)


def gap(kl: float, logprob_max: float = 0.1, tokens: int = 1) -> SamplerGap:
    return SamplerGap(kl=kl, kl_v1=-kl, kl_v3=2 * kl, logprob_max=logprob_max, tokens=tokens)


def test_limits_follow_precision() -> None:
    assert gap_limits(load_config("quickstart.yaml")) == GapLimits(kl=1e-6, logprob=1e-2)
    half = gap_limits(load_config("quickstart.yaml", ["model.dtype=bfloat16"]))
    assert half == GapLimits(kl=1e-2, logprob=2.0)
    chosen = load_config("quickstart.yaml", ["rollout.max_kl=0.5", "rollout.max_logprob_gap=3"])
    assert gap_limits(chosen) == GapLimits(kl=0.5, logprob=3.0)


def test_merged_means_are_over_tokens_and_the_largest_is_the_largest() -> None:
    """One token at 4 and three at 8: (4 + 3 · 8) / 4 = 7."""
    merged = SamplerGap.merged([gap(4.0, logprob_max=0.3), gap(8.0, logprob_max=0.2, tokens=3)])
    assert merged == SamplerGap(kl=7.0, kl_v1=-7.0, kl_v3=14.0, logprob_max=0.3, tokens=4)


def test_what_is_on_a_limit_passes() -> None:
    LIMITS.check(gap(1e-3, logprob_max=0.5))


@pytest.mark.parametrize(
    "over", [gap(1.1e-3), gap(0.0, logprob_max=0.6), gap(math.nan), gap(0.0, logprob_max=math.nan), gap(math.inf)]
)
def test_what_is_over_a_limit_or_no_number_is_refused(over: SamplerGap) -> None:
    with pytest.raises(SamplerGapError, match=r"\(limit 0\.001\).*\(limit 0\.5\) nats\. Nothing was updated\."):
        LIMITS.check(over)


def test_without_limits_anything_passes_but_what_is_no_number() -> None:
    """The sampler was checked against the versions that sampled: what was learned since may be any amount."""
    check_gap(gap(1e9, logprob_max=math.inf), None)
    with pytest.raises(SamplerGapError, match=r"no number.*Nothing was updated"):
        check_gap(gap(math.nan), None)
