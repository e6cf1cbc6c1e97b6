"""The statistics of a step against hand-computed numbers: one micro-batch, several, and two ranks."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rl_engine.config import LossConfig
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.gap import SamplerGap, TokenGap
from rl_engine.learner.objective import objective
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.statistics import StepStatistics

LOG2 = math.log(2)


def count(
    statistics: StepStatistics,
    logprobs: tuple[float, ...],
    config: LossConfig,
    *,
    advantage: float,
    moved: bool = False,
    base: bool = True,
    first: bool = True,
) -> None:
    """Add a completion whose tokens the sampler drew with log-probabilities −1, −2, …, each with weight ½.

    If the learner has `moved`, the step began with those log-probabilities. The gap is measured in its `first` update.
    """
    sampled = tuple(-1.0 - place for place in range(len(logprobs)))
    sample = TrainingSample(
        prompt_ids=(1,),
        completion_ids=(2,) * len(logprobs),
        behaviour_logprobs=sampled,
        old_logprobs=sampled if moved else None,
        advantage=advantage,
        weight=0.5,
    )
    batch = collate([sample], pad_id=0, layout="padded")
    logprob_N, entropy_N = torch.tensor(logprobs), torch.tensor([0.3, 0.5, 0.7][: len(logprobs)])
    part = objective(config, batch, batch.spread(logprob_N), batch.spread(entropy_N), None)
    statistics.add(part, logprob_N, entropy_N, batch)
    if first:
        statistics.add_gap(logprob_N, batch, [sample])
    if base:
        statistics.add_base(logprob_N[:1], torch.tensor([-1.5]))


def test_two_tokens_one_over_the_bound(ranks: Ranks) -> None:
    """Ratios 1 and 2 with advantage 2: one is over PPO's bound."""
    statistics = StepStatistics(ranks)
    count(statistics, (-1.0, -2.0 + LOG2), LossConfig(name="ppo_clip"), advantage=2.0, moved=True)
    stats = statistics.totals()
    assert stats.loss == pytest.approx(-0.5 * 2.0 * (1 + 1.2))
    assert stats.entropy == pytest.approx(0.4)
    assert stats.kl_base == pytest.approx(math.exp(-0.5) - 0.5)
    assert stats.gap.kl_v1 == pytest.approx(-LOG2 / 2)
    assert stats.gap.kl == pytest.approx(0.5 * LOG2**2 / 2)
    assert stats.gap.kl_v3 == pytest.approx((2 - 1 - LOG2) / 2)
    assert stats.gap.logprob_max == pytest.approx(LOG2)
    assert stats.gap.tokens == stats.tokens == 2
    assert stats.ratio == pytest.approx({"p01": 1.0, "p50": 1.0, "p99": 2.0, "max": 2.0})
    assert stats.ess_frac == pytest.approx(3**2 / (2 * 5))
    assert (stats.clip_low_frac, stats.clip_high_frac) == (0.0, 0.5)
    assert stats.correction == {"mean": 1.0, "outside_frac": 0.0}


@pytest.mark.parametrize(
    ("name", "low", "high", "ratios"),
    [
        ("ppo_clip", 1 / 4, 1 / 4, (0.5, 2.0, 2.0)),
        # It has no lower bound, and these have none at all.
        ("cispo", 0.0, 0.0, (0.5, 2.0, 2.0)),
        ("importance_sampling", 0.0, 0.0, (0.5, 2.0, 2.0)),
        # The bad completion's tokens share one ratio, √(½ · 2).
        ("gspo", 0.0, 1 / 4, (1.0, 1.0, 2.0)),
    ],
)
def test_tokens_held_by_either_bound(
    name: str, low: float, high: float, ratios: tuple[float, ...], ranks: Ranks
) -> None:
    """Ratios of ½ and 2 to the step's start: of a bad completion the lower is held, of a good one the upper."""
    statistics = StepStatistics(ranks)
    config = LossConfig(name=name)
    for advantage, tokens in ((-1.0, (-1.0 - LOG2, -2.0 + LOG2)), (1.0, (-1.0 + LOG2,)), (1.0, (-1.0,))):
        count(statistics, tokens, config, advantage=advantage, moved=True)
    stats = statistics.totals()
    assert (stats.clip_low_frac, stats.clip_high_frac) == (low, high)
    assert [stats.ratio[name] for name in ("p01", "p50", "max")] == pytest.approx(ratios)


def test_statistics_keep_no_graph_of_a_micro_batch(ranks: Ranks) -> None:
    """A step would hold the activations of all its micro-batches."""
    statistics = StepStatistics(ranks)
    sample = TrainingSample(prompt_ids=(1,), completion_ids=(2,), behaviour_logprobs=(-1.0,), advantage=1.0)
    batch = collate([sample], pad_id=0, layout="padded")
    logprob_BC = torch.tensor([[-1.0]], requires_grad=True)
    logprob_N = logprob_BC.detach().flatten()
    statistics.add(objective(LossConfig(), batch, logprob_BC, torch.zeros(1, 1), None), logprob_N, logprob_N, batch)
    statistics.add_gap(logprob_N, batch, [sample])
    kept = weakref.ref(logprob_BC)
    del logprob_BC
    assert kept() is None
    assert statistics.totals().loss == -1.0


def test_means_of_micro_batches_are_over_their_tokens(ranks: Ranks) -> None:
    """One token with entropy 0.3 and three with 0.3, 0.5 and 0.7: 1.8 / 4. Gaps: ln 2 once, and 0 three times."""
    statistics = StepStatistics(ranks)
    count(statistics, (-1.0 + LOG2,), LossConfig(), advantage=1.0)
    count(statistics, (-1.0, -2.0, -3.0), LossConfig(), advantage=-1.0)
    stats = statistics.totals()
    assert stats.loss == pytest.approx(-0.5 * 2 + 0.5 * 3)
    assert stats.correction == {}
    assert stats.entropy == pytest.approx(0.45)
    assert stats.gap.kl == pytest.approx(0.5 * LOG2**2 / 4)
    assert stats.gap.logprob_max == pytest.approx(LOG2)
    assert stats.ess_frac == pytest.approx(5**2 / (4 * 7))
    assert stats.ratio == pytest.approx({"p01": 1.0, "p50": 1.0, "p99": 2.0, "max": 2.0})


def test_means_of_several_updates_are_over_all_their_tokens(ranks: Ranks) -> None:
    """The first has one token, with entropy 0.3, and the second two, with 0.3 and 0.5. The gap is only the first's."""
    statistics = StepStatistics(ranks)
    count(statistics, (-1.0 + LOG2,), LossConfig(), advantage=1.0)
    count(statistics, (-1.0, -2.0), LossConfig(), advantage=-1.0, first=False)
    stats = statistics.totals()
    assert (stats.tokens, stats.gap.tokens) == (3, 1)
    assert stats.gap.kl_v1 == pytest.approx(-LOG2)
    assert stats.entropy == pytest.approx((0.3 + 0.3 + 0.5) / 3)
    assert stats.ess_frac == pytest.approx((2 + 1 + 1) ** 2 / (3 * (4 + 1 + 1)))


def test_the_quantiles_of_the_ratio_are_where_they_say(ranks: Ranks) -> None:
    statistics = StepStatistics(ranks)
    statistics._log_ratios = [*torch.arange(101).flip(0).div(100).split(40)]
    at = {"p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
    assert statistics._ratio_quantiles() == pytest.approx({name: math.exp(log) for name, log in at.items()})


def test_small_losses_are_not_lost_beside_large_ones(ranks: Ranks) -> None:
    """In float32, 2²⁴ + 1 is 2²⁴."""
    statistics = StepStatistics(ranks)
    for advantage in (2.0**25, 2.0):
        count(statistics, (-1.0,), LossConfig(), advantage=advantage)
    assert statistics.totals().loss == -(2**24) - 1


def test_the_correction_is_reported_with_its_bounds(ranks: Ranks) -> None:
    """The weights policy/sampler are 1 and 4; the second is outside and truncated to 2."""
    statistics = StepStatistics(ranks)
    config = LossConfig(sampler_correction="token_truncate", correction_max=2.0)
    count(statistics, (-1.0, -2.0 + 2 * LOG2), config, advantage=1.0)
    stats = statistics.totals()
    assert stats.correction == pytest.approx({"mean": 1.5, "outside_frac": 0.5})
    # Neither truncated nor relative to the step's start.
    assert stats.ess_frac == pytest.approx((1 + 4) ** 2 / (2 * (1 + 16)))


def test_the_share_beyond_the_limit_and_the_furthest_token(ranks: Ranks) -> None:
    """Gaps of ln 2, and of 0, −3 and 1, against a limit of ½; the second completion's second token is furthest."""
    statistics = StepStatistics(ranks, logprob_limit=0.5)
    count(statistics, (-1.0 + LOG2,), LossConfig(), advantage=1.0)
    count(statistics, (-1.0, -5.0, -2.0), LossConfig(), advantage=1.0)
    gap = statistics.totals().gap
    assert gap.beyond == pytest.approx(3 / 4)
    assert gap.worst == TokenGap(token=2, place=2, tokens=3, origin="", sampler=-2.0, learner=-5.0)


def test_the_token_is_found_among_the_samples_of_a_micro_batch(ranks: Ranks) -> None:
    made = [
        TrainingSample(
            prompt_ids=(1,), completion_ids=ids, behaviour_logprobs=(-1.0,) * len(ids), advantage=0.0, origin=name
        )
        for name, ids in (("a", (5, 6)), ("b", (7,)), ("c", (8, 9, 10)))
    ]
    statistics = StepStatistics(ranks)
    places = (("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2), ("c", 3))
    for index, place in enumerate(places):
        logprob_N = torch.full((6,), -1.0)
        logprob_N[index] -= index + 1
        statistics.add_gap(logprob_N, collate(made, pad_id=0, layout="padded"), made)
        worst = statistics.gap().worst
        assert worst is not None
        assert (worst.origin, worst.place, worst.token) == (*place, 5 + index)


def test_the_gap_of_two_ranks_covers_all_their_tokens(ranks: Ranks) -> None:
    """The sum includes what the other rank passes to it; a single rank sees everything."""
    completions = ((-1.0 + LOG2,), (-1.0, -5.0, -2.0))
    whole = StepStatistics(ranks, logprob_limit=0.5)
    for logprobs in completions:
        count(whole, logprobs, LossConfig(), advantage=1.0)
    sums: list[torch.Tensor] = []

    def summed(values: torch.Tensor) -> torch.Tensor:
        sums.append(values)
        return torch.stack(sums).sum(dim=0)

    pair: Any = SimpleNamespace(device=ranks.device, sum=summed, gather=lambda mine: mine)
    for logprobs in completions:
        one = StepStatistics(pair, logprob_limit=0.5)
        count(one, logprobs, LossConfig(), advantage=1.0)
        found = one.gap()
    assert found == whole.gap()
    assert found.kl_error == pytest.approx(0.5 * math.sqrt(LOG2**4 + 3**4 + 1) / 4)


def test_kl_base_is_nan_without_a_base(ranks: Ranks) -> None:
    statistics = StepStatistics(ranks)
    count(statistics, (-1.0, -2.0), LossConfig(), advantage=1.0, base=False)
    assert math.isnan(statistics.totals().kl_base)


def test_a_nan_gap_is_not_skipped(ranks: Ranks) -> None:
    statistics = StepStatistics(ranks)
    count(statistics, (math.nan, -2.0), LossConfig(), advantage=1.0)
    count(statistics, (-1.0, -2.0), LossConfig(), advantage=1.0)
    gap: SamplerGap = statistics.totals().gap
    assert math.isnan(gap.kl)
    assert math.isnan(gap.logprob_max)
    assert gap.worst is not None
    assert math.isnan(gap.worst.learner)
    # Nor among those of other ranks.
    statistics.ranks = cast("Ranks", SimpleNamespace(device=ranks.device, sum=ranks.sum, gather=with_others))
    assert math.isnan(statistics.gap().logprob_max)


def with_others(mine: list[Any]) -> list[Any]:
    """What two other ranks report before and after this one."""
    return [(0.5, None), *mine, (4.0, None)]
