"""How busy the workers were, calculated by hand on a clock that the test advances."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from rollout.config import SamplingConfig
from rollout.pool.activity import Activity
from rollout.types import Problem, Prompt
from rollout.work_items import PromptBatch, WorkItem, extended, split

PROMPTS = [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(1,)) for i in range(3)]


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock: Clock) -> Activity:
    return Activity(4, clock)


def items() -> list[WorkItem]:
    return split(PromptBatch(PROMPTS, SamplingConfig(n=2), None, ["a", "b", "c"]), 1).items


def test_a_pool_that_grows_is_busy_by_the_workers_that_it_had(clock: Clock, activity: Activity) -> None:
    """Four workers for 3 s, all busy; then six for 1 s, of which the same four are busy."""
    activity.mark()
    activity.see("abcd", waits=True)
    clock.now += 3
    activity.resize(6)
    clock.now += 1
    assert activity.figures("abcdef")["busy_frac"] == pytest.approx(16 / (12 + 6))


def test_shares_queue_and_tail_by_hand(clock: Clock, activity: Activity) -> None:
    """Four workers, six seconds: two busy for 3 s while work waits, then one alone for 2 s, then none."""
    first, second, third = items()
    activity.mark()
    activity.asked([first, second, third])
    activity.begun(first)
    activity.begun(second)
    activity.see("ab", waits=True)
    clock.now += 3
    activity.begun(third)
    activity.see("c", waits=False)
    clock.now += 2
    activity.see("", waits=False)
    clock.now += 1
    figures = activity.figures("abcd")
    assert figures == {
        "busy_frac": pytest.approx((3 + 3 + 2) / (6 * 4)),
        "busy_min_frac": 0.0,
        "tail_s": 2.0,
        "queue_s": pytest.approx(3 / 3),
    }


def test_what_goes_on_counts_from_the_mark(clock: Clock, activity: Activity) -> None:
    """Time before the mark does not count, even for a worker that is still busy."""
    activity.see("abcd", waits=False)
    clock.now += 5
    activity.mark()
    clock.now += 2
    assert activity.figures("abcd") == {"busy_frac": 1.0, "busy_min_frac": 1.0, "tail_s": 0.0}


def test_a_lost_worker_has_worked_and_a_missing_one_is_idle(clock: Clock, activity: Activity) -> None:
    activity.see("abcd", waits=True)
    clock.now += 2
    activity.see("abc", waits=True)
    clock.now += 2
    figures = activity.figures("abc")
    assert figures["busy_frac"] == pytest.approx((3 * 4 + 2) / 16)
    assert figures["busy_min_frac"] == 1.0
    activity.mark()
    clock.now += 1
    assert activity.figures("abc")["busy_frac"] == pytest.approx(3 / 4)


def test_a_leg_that_waits_for_another_does_not_wait_for_a_worker(clock: Clock, activity: Activity) -> None:
    (one, *_) = items()
    later = extended(one.request, SamplingConfig(n=2), None).items[0]
    activity.asked([later])
    clock.now += 9
    activity.begun(later)
    assert "queue_s" not in activity.figures("abcd")
