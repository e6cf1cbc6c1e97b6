"""Advantages against hand-computed numbers, and which groups have any."""

from __future__ import annotations

import math

import pytest
import torch

from rl_engine.learner.advantages import BASELINES, advantages_of, group_mean, group_mean_std, leave_one_out
from rl_engine.learner.groups import GradedGroup
from tests.helpers.builders import completion, graded_group, prompt, result


def group(*rewards: float) -> GradedGroup:
    """Completions of one problem with these rewards."""
    return graded_group(prompt(), [(completion(), result(reward=reward)) for reward in rewards])


def test_group_mean_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 1.5, 0.5, 1.5]])
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [-0.5, 0.5, -0.5, 0.5]])
    torch.testing.assert_close(group_mean(rewards), expected)


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    expected = torch.tensor([[1 - 0.5 / 3, 0 - 1.5 / 3, 0.5 - 1 / 3, 0 - 1.5 / 3]])
    torch.testing.assert_close(leave_one_out(rewards), expected)


def test_group_mean_std_advantages_by_hand() -> None:
    """Rewards 1, 0, 0, 0: mean ¼, squared deviations 9/16 + 3 · 1/16 = ¾, over 3: std ½. Of 3, 1, 1, 3: std √(4/3)."""
    advantages = group_mean_std(torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 1.0, 3.0]]))
    first = torch.tensor([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-4)
    second = torch.tensor([1.0, -1.0, -1.0, 1.0]) / (math.sqrt(4 / 3) + 1e-4)
    torch.testing.assert_close(advantages, torch.stack([first, second]))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_groups_advantages_do_not_depend_on_the_others(baseline: str) -> None:
    step = [group(1.0, 0.0, 0.0, 0.0), group(2.0, 1.0, 2.0, 1.0), group(0.0, 9.0), group(0.0, 1.0, 1.0, 1.0)]
    assert advantages_of(step, baseline) == [advantages_of([each], baseline)[0] for each in step]


def test_each_group_of_a_step_has_its_own_baseline() -> None:
    """The means are 0.25 and 1.5."""
    found = advantages_of([group(1.0, 0.0, 0.0, 0.0), group(2.0, 1.0, 2.0, 1.0)], "group_mean")
    assert found == [[0.75, -0.25, -0.25, -0.25], [0.5, -0.5, 0.5, -0.5]]


def test_a_group_has_signal_if_its_rewards_differ() -> None:
    assert group(1.0, 1.0, 0.9).has_signal
    assert not group(0.1, 0.1, 0.1).has_signal
    assert not group(0.0, -0.0).has_signal


@pytest.mark.parametrize("baseline", BASELINES)
def test_groups_without_signal_have_exactly_zero_advantage(baseline: str) -> None:
    """In floating point the mean of 0.1, 0.1 and 0.1 is not exactly 0.1."""
    dull, other = advantages_of([group(0.1, 0.1, 0.1), group(1.0, 0.0, 1.0)], baseline)
    assert dull == [0.0, 0.0, 0.0]
    assert sum(other) == pytest.approx(0.0, abs=1e-12)


def scored_group(*rewards: float | None) -> GradedGroup:
    """Completions of one problem with these rewards; None means not scored."""
    graded = [result(reward=0.0, scored=False) if reward is None else result(reward=reward) for reward in rewards]
    return graded_group(prompt(), [(completion(), each) for each in graded])


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # The mean of 1, 0, 0, 1 is ½; that of 3 and 1 is 2.
        ("group_mean", [[0.5, 0.0, -0.5, -0.5, 0.5], [0.0, 0.0, 1.0, -1.0, 0.0]]),
        # The rewards other than a 1 have mean ⅓, those other than a 0 mean ⅔; of two, each is the other's baseline.
        ("leave_one_out", [[2 / 3, 0.0, -2 / 3, -2 / 3, 2 / 3], [0.0, 0.0, 2.0, -2.0, 0.0]]),
        # Four squared deviations of ¼, divided by 3: std 1/√3. Two of 1, divided by 1: std √2.
        (
            "group_mean_std",
            [
                [sign * 0.5 / (3**-0.5 + 1e-4) for sign in (1, 0, -1, -1, 1)],
                [sign / (2**0.5 + 1e-4) for sign in (0, 0, 1, -1, 0)],
            ],
        ),
    ],
)
def test_mean_and_scale_cover_only_scored_completions(baseline: str, expected: list[list[float]]) -> None:
    groups = [scored_group(1.0, None, 0.0, 0.0, 1.0), scored_group(None, None, 3.0, 1.0, None)]
    found = advantages_of(groups, baseline)
    assert [pytest.approx(row, abs=1e-15) for row in expected] == found


@pytest.mark.parametrize("baseline", BASELINES)
def test_unscored_completions_make_no_signal(baseline: str) -> None:
    """A zero in place of a missing reward would differ from the ones next to it."""
    groups = [scored_group(1.0, None, 1.0), scored_group(None, 1.0, None), scored_group(None, None, None)]
    assert not any(group.has_signal for group in groups)
    assert advantages_of(groups, baseline) == [[0.0] * 3] * 3
