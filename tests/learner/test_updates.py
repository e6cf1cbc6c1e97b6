"""Groups → updates: which completions each update trains on, and with which weights."""

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


def test_groups_without_signal_are_dropped_but_counted(make_config: Any) -> None:
    config = make_config("loss.normalizer=tokens")
    (update,) = updates_of(config, GROUPS, ADVANTAGES)
    assert [(s.prompt_ids, len(s.completion_ids), s.advantage) for s in update] == [
        ((0,), 1, 0.5),
        ((0,), 2, -0.5),
        ((2,), 5, -0.25),
        ((2,), 6, 0.25),
    ]
    assert [s.weight for s in update] == pytest.approx([1 / 21] * 4)
    assert [s.origin for s in update] == [f"completion {i} of problem {p}" for p in (0, 2) for i in (1, 2)]


def test_updates_get_whole_groups_and_their_own_normalizers(make_config: Any) -> None:
    config = make_config("learner.updates_per_step=2", "loss.normalizer=sequence")
    # The second update would have had only the group without signal.
    (update,) = updates_of(config, GROUPS, ADVANTAGES)
    assert [s.prompt_ids for s in update] == [(0,), (0,), (2,), (2,)]
    assert [s.weight for s in update] == pytest.approx([1 / (4 * n) for n in (1, 2, 5, 6)])
    both = updates_of(config, [GROUPS[0], group(1, (3, 4)), GROUPS[2]], ADVANTAGES)
    assert [{s.prompt_ids for s in part} for part in both] == [{(0,), (2,)}, {(1,)}]


@pytest.mark.parametrize("term", ["loss.kl_coef=0.1", "loss.entropy_coef=0.1"])
def test_a_penalty_or_bonus_learns_from_every_group(term: str, make_config: Any) -> None:
    (update,) = updates_of(make_config(term), GROUPS, ADVANTAGES)
    assert len(update) == 6


def test_an_update_without_signal_is_left_out(make_config: Any) -> None:
    dull = [group(number, (1, 2), signal=False) for number in range(3)]
    assert updates_of(make_config(), dull, [[0.0, 0.0]] * 3) == []


def without(group: GradedGroup, index: int) -> GradedGroup:
    """The group with one completion not scored."""
    results = list(group.results)
    results[index] = result(Verdict.ERROR, scored=False)
    return GradedGroup(group.rollout, tuple(results))


@pytest.mark.parametrize("term", ["loss.kl_coef=0", "loss.kl_coef=0.1", "loss.entropy_coef=0.1"])
@pytest.mark.parametrize(
    ("normalizer", "weights"),
    [
        # Five lengths, 1, 3, 4, 5 and 6, with sum 19; the quickstart's limit is 72 tokens.
        ("tokens", {1: 1 / 19, 3: 1 / 19, 4: 1 / 19, 5: 1 / 19, 6: 1 / 19}),
        ("constant", dict.fromkeys((1, 3, 4, 5, 6), 1 / (5 * 72))),
        ("sequence", {n: 1 / (5 * n) for n in (1, 3, 4, 5, 6)}),
    ],
)
def test_unscored_completions_enter_no_loss_or_normalizer(
    term: str, normalizer: str, weights: dict[int, float], make_config: Any
) -> None:
    """Not even a penalty or bonus applies to it."""
    config = make_config(f"loss.normalizer={normalizer}", term)
    (update,) = updates_of(config, [without(GROUPS[0], 1), *GROUPS[1:]], ADVANTAGES)
    found = {len(sample.completion_ids): sample.weight for sample in update}
    assert 2 not in found
    assert found == pytest.approx({n: weights[n] for n in found})


@pytest.mark.parametrize("term", ["loss.kl_coef=0", "loss.kl_coef=0.1"])
def test_there_is_no_update_if_nothing_is_scored(term: str, make_config: Any) -> None:
    groups = [without(without(each, 0), 1) for each in GROUPS]
    assert updates_of(make_config(term), groups, [[0.0, 0.0]] * 3) == []
