"""The gap between sampler and learner against its limits, computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from rl_engine.config import load_config
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.gap import (
    DivergedError,
    GapLimits,
    SamplerGap,
    SamplerGapError,
    TokenGap,
    check_gap,
    furthest,
    gap_limits,
)
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.statistics import StepStatistics

LIMITS = GapLimits(kl=1e-3, logprob=0.5)
HALF = GapLimits(kl=1e-2, logprob=2.0)
"""The limits for bfloat16."""
ALONE = Ranks(0, 1, torch.device("cpu"))


def gap(
    kl: float, logprob_max: float = 0.1, tokens: int = 1_000_000, beyond: float = 0.0, worst: TokenGap | None = None
) -> SamplerGap:
    """A gap, by default over so many tokens that chance explains nothing."""
    return SamplerGap(
        kl=kl,
        kl_error=0.0,
        kl_v1=-kl,
        kl_v3=2 * kl,
        logprob_max=logprob_max,
        tokens=tokens,
        beyond=beyond,
        worst=worst,
    )


def measured(gaps: Sequence[float], limits: GapLimits = HALF) -> SamplerGap:
    """What a step measures on tokens with these gaps, in nats."""
    statistics = StepStatistics(ALONE, limits.logprob)
    sample = TrainingSample(
        prompt_ids=(1,), completion_ids=(2,) * len(gaps), behaviour_logprobs=(-1.0,) * len(gaps), advantage=0.0
    )
    logprob_N = -1.0 - torch.tensor(gaps, dtype=torch.float64)
    statistics.add_gap(logprob_N, collate([sample], pad_id=0, layout="padded"), [sample])
    return statistics.gap()


def refused(found: SamplerGap, limits: GapLimits = HALF) -> bool:
    try:
        limits.check(found)
    except SamplerGapError:
        return True
    return False


def token(learner: float) -> TokenGap:
    return TokenGap(token=7, place=3, tokens=9, origin="completion 2 of problem p", sampler=-1.5, learner=learner)


def test_limits_follow_precision() -> None:
    assert gap_limits(load_config("quickstart.yaml", ["model.dtype=float32"])) == GapLimits(kl=1e-6, logprob=1e-2)
    half = gap_limits(load_config("quickstart.yaml", ["model.dtype=bfloat16"]))
    assert half == GapLimits(kl=1e-2, logprob=2.0)
    chosen = load_config("quickstart.yaml", ["model.dtype=float32", "rollout.max_kl=0.5", "rollout.max_logprob_gap=3"])
    assert gap_limits(chosen) == GapLimits(kl=0.5, logprob=3.0)


def test_merged_means_are_over_tokens() -> None:
    """One token at 4 and three at 8: (4 + 3 · 8) / 4 = 7. Two of the three are over the per-token limit."""
    parts = [
        gap(4.0, 0.3, tokens=1, beyond=1.0, worst=token(-1.2)),
        gap(8.0, 0.2, tokens=3, beyond=2 / 3, worst=token(-1.3)),
    ]
    assert SamplerGap.merged(parts) == SamplerGap(
        kl=7.0,
        kl_error=0.0,
        kl_v1=-7.0,
        kl_v3=14.0,
        logprob_max=0.3,
        tokens=4,
        beyond=0.75,
        worst=token(-1.2),
    )
    assert SamplerGap.merged(parts[::-1]).worst == token(-1.2)


def test_merged_parts_equal_the_whole() -> None:
    gaps = [0.1, -3.0, 0.02, 0.0, 0.5, -2.5, 0.3]
    whole = measured(gaps)
    for border in range(1, len(gaps)):
        merged = SamplerGap.merged([measured(gaps[:border]), measured(gaps[border:])])
        for name in ("kl", "kl_error", "kl_v1", "kl_v3", "logprob_max", "tokens", "beyond"):
            assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12), name


def test_limits_are_inclusive_and_one_token_in_1000_passes() -> None:
    LIMITS.check(gap(1e-3, logprob_max=0.5))
    LIMITS.check(gap(1e-3, logprob_max=9.0, tokens=1000, beyond=1e-3))


@pytest.mark.parametrize(
    "over",
    [gap(1.1e-3), gap(0.0, beyond=2e-3), gap(math.nan), gap(0.0, beyond=1.0, logprob_max=math.nan), gap(math.inf)],
)
def test_a_gap_over_a_limit_or_nan_is_refused(over: SamplerGap) -> None:
    with pytest.raises(SamplerGapError, match=r"\(limit 0\.001, .*\(limit 0\.1%, .*Nothing was updated\."):
        LIMITS.check(over)


def test_one_far_token_among_few_is_no_wrong_adapter() -> None:
    """Observed with SmolLM2-135M in bfloat16: 115 tokens, one of them 0.945 nats apart, sampler/kl 0.0108."""
    rest = math.sqrt(2 * (115 * 0.0108 - 0.945**2 / 2) / 114)
    seen = measured([0.945, *[rest] * 114])
    assert seen.kl == pytest.approx(0.0108)
    HALF.check(seen)
    # One token at the per-token limit passes, however few tokens there are, and so does one beyond it among a hundred.
    # Two beyond it among few tokens do not.
    for tokens in (2, 16, 100, 115, 400):
        HALF.check(measured([2.0, *[0.02] * (tokens - 1)]))
    for tokens in (100, 115, 400):
        HALF.check(measured([3.0, *[0.02] * (tokens - 1)]))
        assert refused(measured([12.0, *[0.02] * (tokens - 1)]))
    for tokens in (2, 16, 40):
        assert refused(measured([3.0, -3.0, *[0.02] * (tokens - 2)]))
    HALF.check(measured([1.0, *[0.02] * 99]))


@pytest.mark.parametrize(
    ("tokens", "nats"),
    [(2, 5.0), (7, 1.0), (16, 0.6), (100, 0.3), (115, 0.25), (448, 0.2), (4000, 0.16)],
)
def test_a_gap_on_all_tokens_is_refused(tokens: int, nats: float) -> None:
    assert refused(measured([nats, -nats] * (tokens // 2) + [nats] * (tokens % 2)))


def test_float32_detects_another_adapter_from_few_tokens() -> None:
    limits = gap_limits(load_config("quickstart.yaml", ["model.dtype=float32"]))
    limits.check(measured([5e-4, -5e-4, 2e-4] * 40, limits))
    limits.check(measured([1e-2, *[1e-4] * 99], limits))
    assert refused(measured([5e-2, *[1e-4] * 99], limits), limits)
    assert refused(measured([5e-3] * 30, limits), limits)
    assert refused(measured([0.1, -0.2, 0.3, *[1e-5] * 77], limits), limits)


@pytest.mark.parametrize("tokens", [1, 2, 115, 10_000])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_nan_or_infinite_token_is_refused(tokens: int, value: float) -> None:
    found = measured([*[0.0] * (tokens - 1), value])
    assert refused(found)
    assert refused(SamplerGap.merged([measured([0.0] * 100), found]))


def test_the_message_names_the_token_and_its_position() -> None:
    with pytest.raises(SamplerGapError) as caught:
        LIMITS.check(gap(0.1, logprob_max=3.0, tokens=10_000, beyond=0.25, worst=token(-4.5)))
    assert (
        "over 10,000 tokens, sampler/kl 0.1 (limit 0.001, plus 0 that chance may add) and 25.00% of them more than 0.5 "
        "nats apart (limit 0.1%, plus 0.10% that chance may add), at most 3, at token 3 of 9 (id 7) of completion 2 of "
        "problem p: sampler -1.5, learner -4.5 nats. Nothing was updated."
    ) in str(caught.value)
    with pytest.raises(SamplerGapError, match=r"over 100 tokens, sampler/kl 0\.045 \(limit 0\.01, plus 0\.0135 that "):
        HALF.check(measured([0.3] * 100))
    with pytest.raises(DivergedError, match=r"log-probability is NaN at token 3 of 9 .*sampler is not the cause"):
        LIMITS.check(gap(math.nan, logprob_max=math.nan, beyond=0.1, worst=token(math.nan)))


def test_nan_in_the_canary_is_no_agreement() -> None:
    assert furthest([[1.0, 2.0], [3.0]], [[1.0, 2.5], [3.25]]) == 0.5
    assert furthest([[1.0, 2.0], [3.0]], [[1.0, 2.5], [3.25]], but=1) == 0.25
    assert furthest([[1.0]], [[3.0]], but=1) == 2.0
    for place in range(3):
        row = [0.0, 9.0, 0.0]
        row[place] = math.nan
        assert math.isnan(furthest([row], [[0.0, 0.0, 0.0]], but=1))


def test_without_limits_everything_but_nan_passes() -> None:
    """The sampler has been checked against the versions that sampled; what was learned since may be any amount."""
    check_gap(gap(1e9, logprob_max=math.inf), None)
    check_gap(gap(1e-3), LIMITS)
    with pytest.raises(SamplerGapError, match=r"limit 0\.001"):
        check_gap(gap(1.1e-3), LIMITS)
    with pytest.raises(DivergedError, match=r"^sampler/kl is NaN: .*Nothing was updated"):
        check_gap(gap(math.nan), None)
