"""Pool workers that die: what is sampled again, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.pool_setting import (
    Decoding,
    Failures,
)
from benchmarks.pool_simulation import simulate
from tests.helpers.pool_settings import COSTS, setting, works

ONE_SECOND = replace(COSTS, decoding=Decoding(call_s=10.0, sequence_s=0, longest_s=0, token_s=0), load_s=0.0)


def dying(*at: float, start_s: float = 5.0) -> Any:
    """Scripted failures at these times: the first worker's, then the next one's."""

    left = list(at)

    class Drawn:
        def exponential(self, mean: float) -> float:
            return left.pop(0) if left else math.inf

    return Failures(per_hour=1, start_s=start_s), lambda _: Drawn()


def test_what_a_dead_worker_was_at_is_sampled_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: two workers, six pieces of 10 s. The second worker dies at 4 s, and its piece goes to the front of the
    queue. Its replacement is ready at 4 + 5 = 9 s and takes it. The first worker has done 3 pieces at 30 s; the
    replacement has done 2 at 29 s and takes the sixth."""
    failures, drawn = dying(math.inf, 4.0)
    (work,) = works(1)
    monkeypatch.setattr("benchmarks.pool_simulation.np.random.default_rng", drawn)
    (found,) = simulate(ONE_SECOND, setting(2, failures=failures), [work])
    assert found.rollout_s == pytest.approx(39)
    assert found.lost_tokens == pytest.approx(0.4 * float(work.lengths[2:4].sum()))
    assert found.busy_s == pytest.approx(60 + 4)


def test_an_idle_worker_that_dies_costs_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    failures, drawn = dying(*[math.inf] * 6, 4.0)
    steps = works(1)
    monkeypatch.setattr("benchmarks.pool_simulation.np.random.default_rng", drawn)
    (found,) = simulate(ONE_SECOND, setting(7, failures=failures), steps)
    assert found.rollout_s == pytest.approx(10)
    assert found.lost_tokens == 0


@pytest.mark.parametrize("staleness", [0, 2])
def test_workers_that_never_die_are_as_without_failures(staleness: int) -> None:
    steps = works(8)
    never = setting(3, staleness, failures=Failures(per_hour=0.0, start_s=60))
    assert simulate(COSTS, never, steps) == simulate(COSTS, setting(3, staleness), steps)


@pytest.mark.parametrize("continuous", [False, True])
def test_workers_die_at_the_rate_and_lose_half_a_piece_each(continuous: bool) -> None:
    """On average, each death of a busy worker loses the tokens of half a piece."""
    steps = works(40)
    rate = 30.0
    found = simulate(
        COSTS, setting(3, continuous=continuous, failures=Failures(per_hour=rate, start_s=1.0, seed=1)), steps
    )
    busy = sum(step.busy_s for step in found)
    deaths = busy * rate / 3600
    piece = float(np.mean([work.tokens for work in steps])) / 6
    lost = sum(step.lost_tokens for step in found)
    assert 0.5 < lost / (deaths * piece / 2) < 2
    assert sum(step.step_s for step in found) > sum(step.step_s for step in simulate(COSTS, setting(3), steps))
