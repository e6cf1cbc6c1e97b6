"""How far sampler and learner are apart, against what may be, by hand."""

from __future__ import annotations

import math

import pytest

from rl_engine.config import load_config
from rl_engine.learner.gap import GapLimits, SamplerGap, SamplerGapError, TokenGap, check_gap, furthest, gap_limits

LIMITS = GapLimits(kl=1e-3, logprob=0.5)


def gap(
    kl: float, logprob_max: float = 0.1, tokens: int = 1, beyond: float = 0.0, worst: TokenGap | None = None
) -> SamplerGap:
    return SamplerGap(
        kl=kl, kl_v1=-kl, kl_v3=2 * kl, logprob_max=logprob_max, tokens=tokens, beyond=beyond, worst=worst
    )


def token(learner: float) -> TokenGap:
    return TokenGap(token=7, place=3, tokens=9, origin="completion 2 of problem p", sampler=-1.5, learner=learner)


def test_limits_follow_precision() -> None:
    assert gap_limits(load_config("quickstart.yaml", ["model.dtype=float32"])) == GapLimits(kl=1e-6, logprob=1e-2)
    half = gap_limits(load_config("quickstart.yaml", ["model.dtype=bfloat16"]))
    assert half == GapLimits(kl=1e-2, logprob=2.0)
    chosen = load_config("quickstart.yaml", ["model.dtype=float32", "rollout.max_kl=0.5", "rollout.max_logprob_gap=3"])
    assert gap_limits(chosen) == GapLimits(kl=0.5, logprob=3.0)


def test_merged_means_are_over_tokens_and_the_largest_is_the_largest() -> None:
    """One token at 4 and three at 8: (4 + 3 · 8) / 4 = 7; of the three two are beyond the limit of one token."""
    parts = [gap(4.0, 0.3, beyond=1.0, worst=token(-1.2)), gap(8.0, 0.2, tokens=3, beyond=2 / 3, worst=token(-1.3))]
    assert SamplerGap.merged(parts) == SamplerGap(
        kl=7.0, kl_v1=-7.0, kl_v3=14.0, logprob_max=0.3, tokens=4, beyond=0.75, worst=token(-1.2)
    )


def test_what_is_on_a_limit_passes_and_so_does_one_token_of_thousands() -> None:
    LIMITS.check(gap(1e-3, logprob_max=0.5))
    LIMITS.check(gap(1e-3, logprob_max=9.0, tokens=1000, beyond=1e-3))


@pytest.mark.parametrize(
    "over",
    [gap(1.1e-3), gap(0.0, beyond=2e-3), gap(math.nan), gap(0.0, beyond=1.0, logprob_max=math.nan), gap(math.inf)],
)
def test_what_is_over_a_limit_or_no_number_is_refused(over: SamplerGap) -> None:
    with pytest.raises(SamplerGapError, match=r"\(limit 0\.001\).*\(limit 0\.1%\).*Nothing was updated\."):
        LIMITS.check(over)


def test_the_message_names_the_token_and_its_place() -> None:
    with pytest.raises(SamplerGapError) as caught:
        LIMITS.check(gap(0.1, logprob_max=3.0, tokens=4000, beyond=0.25, worst=token(-4.5)))
    assert (
        "sampler/kl 0.1 (limit 0.001), 25.00% of 4,000 tokens more than 0.5 nats apart (limit 0.1%), at most 3, at "
        "token 3 of 9 (id 7) of completion 2 of problem p: sampler -1.5, learner -4.5 nats. Nothing was updated."
    ) in str(caught.value)
    with pytest.raises(SamplerGapError, match=r"learner's own .* no number: token 3 of 9 .*sampler is not the cause"):
        LIMITS.check(gap(math.nan, logprob_max=math.nan, beyond=0.1, worst=token(math.nan)))


def test_no_number_in_the_canary_is_no_agreement() -> None:
    assert furthest([[1.0, 2.0], [3.0]], [[1.0, 2.5], [3.25]]) == 0.5
    assert furthest([[1.0, 2.0], [3.0]], [[1.0, 2.5], [3.25]], but=1) == 0.25
    assert furthest([[1.0]], [[3.0]], but=1) == 2.0
    for place in range(3):
        row = [0.0, 9.0, 0.0]
        row[place] = math.nan
        assert math.isnan(furthest([row], [[0.0, 0.0, 0.0]], but=1))


def test_without_limits_anything_passes_but_what_is_no_number() -> None:
    """The sampler was checked against the versions that sampled: what was learned since may be any amount."""
    check_gap(gap(1e9, logprob_max=math.inf), None)
    with pytest.raises(SamplerGapError, match=r"no number.*Nothing was updated"):
        check_gap(gap(math.nan), None)
