"""Groups → updates: who learns from what, with which weight."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import Verdict
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.updates import updates_of
from tests.helpers.builders import completion, graded_group, prompt, result


def group(number: int, lengths: tuple[int, ...], *, signal: bool = True) -> GradedGroup:
    results = (result(Verdict.CORRECT), result(Verdict.INCORRECT if signal else Verdict.CORRECT))
    pairs = [(completion(tokens=n), each) for n, each in zip(lengths, results, strict=True)]
    return graded_group(prompt(str(number), tokens=(number,)), pairs)


GROUPS = [group(0, (1, 2)), group(1, (3, 4), signal=False), group(2, (5, 6))]
ADVANTAGES = [[0.5, -0.5], [0.0, 0.0], [-0.25, 0.25]]


def test_one_update_drops_groups_without_signal_and_counts_them_in_the_weight(make_config: Any) -> None:
    config = make_config("loss.normalizer=tokens")
    (update,) = updates_of(config, GROUPS, ADVANTAGES)
    assert [(s.prompt_ids, len(s.completion_ids), s.advantage) for s in update] == [
        ((0,), 1, 0.5),
        ((0,), 2, -0.5),
        ((2,), 5, -0.25),
        ((2,), 6, 0.25),
    ]
    assert [s.weight for s in update] == pytest.approx([1 / 21] * 4)


def test_updates_are_dealt_whole_groups_with_normalisers_of_their_own(make_config: Any) -> None:
    config = make_config("learner.updates_per_step=2", "loss.normalizer=sequence")
    # The second update would have had the group without signal alone.
    (update,) = updates_of(config, GROUPS, ADVANTAGES)
    assert [s.prompt_ids for s in update] == [(0,), (0,), (2,), (2,)]
    assert [s.weight for s in update] == pytest.approx([1 / (4 * n) for n in (1, 2, 5, 6)])
    both = updates_of(config, [GROUPS[0], group(1, (3, 4)), GROUPS[2]], ADVANTAGES)
    assert [{s.prompt_ids for s in part} for part in both] == [{(0,), (2,)}, {(1,)}]


@pytest.mark.parametrize("term", ["loss.kl_coef=0.1", "loss.entropy_coef=0.1"])
def test_a_penalty_or_bonus_learns_from_every_group(term: str, make_config: Any) -> None:
    (update,) = updates_of(make_config(term), GROUPS, ADVANTAGES)
    assert len(update) == 6


def test_nothing_to_learn_is_no_update(make_config: Any) -> None:
    dull = [group(number, (1, 2), signal=False) for number in range(3)]
    assert updates_of(make_config(), dull, [[0.0, 0.0]] * 3) == []
