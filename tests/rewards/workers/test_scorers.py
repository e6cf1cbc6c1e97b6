"""Generated tasks are graded by their own scorers, within the limits of all grading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from datafiles.tasks import Task, open_task
from rewards import Grader
from rewards.config import RewardConfig
from rewards.types import GradeItem, GradeResult
from tests.helpers.generated import needs_reasoning_gym

pytestmark = needs_reasoning_gym

# One task for each kind of answer: numbers, words, lists, grids, expressions, moves, code.
KINDS = (
    *("base_conversion", "basic_arithmetic", "bf", "calendar_arithmetic", "complex_arithmetic", "count_primes"),
    *("decimal_arithmetic", "fraction_simplification", "game_of_life", "group_anagrams", "knights_knaves"),
    *("letter_counting", "mini_sudoku", "n_queens", "number_sorting", "polynomial_equations", "rearc", "rotate_matrix"),
    *("shortest_path", "simple_integration", "spell_backward", "syllogism", "time_intervals", "tower_of_hanoi"),
)
TASKS = [Task(name=name) for name in (*KINDS, "coin_flip", "countdown", "lcm", "prime_factorization")]
SUM = Task(name="chain_sum", settings={"max_terms": 2})
LCM = Task(name="lcm")
FACTORS = Task(name="prime_factorization")
YES = Task(name="coin_flip")
COUNTDOWN = Task(name="countdown")
GRIDS = Task(name="rearc")


def entry_of(task: Task, index: int = 0) -> dict[str, Any]:
    entry = open_task(task, seed=5, size=9)[index]
    return {"task": task.name, "settings": dict(task.settings), "entry": entry}


def item(completion: str, entry: dict[str, Any], **given: Any) -> GradeItem:
    return GradeItem(completion=completion, reference=str(entry["entry"]["answer"]), entry=entry, **given)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2, timeout_s=20.0, tasks=[*TASKS, SUM]) as made:
        yield made


def one(grader: Grader, given: GradeItem) -> GradeResult:
    (result,) = grader.grade([given])
    return result


def test_every_task_finds_its_own_answer_right(grader: Grader) -> None:
    """The check runs in the workers, so it would notice if an entry's types changed on the way there."""
    entries = [entry_of(task) for task in TASKS]
    results = grader.check_references([entry["entry"]["answer"] for entry in entries], entries)
    wrong = {entry["task"]: result.detail for entry, result in zip(entries, results, strict=True) if result.reward != 1}
    assert wrong == {}


def test_a_score_becomes_the_reward(grader: Grader) -> None:
    entry = entry_of(SUM)
    answer = entry["entry"]["answer"]
    right = one(grader, item(f"so \\boxed{{{answer}}}", entry))
    assert (right.verdict, right.reward, right.terms, right.detail) == ("correct", 1.0, {}, "task_scorer")
    (scored,) = [open_task(SUM, seed=0, size=1).score_answer(f"it is {answer}", entry["entry"])]
    assert 0 < scored < 1
    partly = one(grader, item(f"\\boxed{{it is {answer}}}", entry))
    assert (partly.verdict, partly.reward, partly.terms) == ("incorrect", scored, {"partial": scored})
    for silent in ("", "no box", "\\boxed{}", f"<think>\\boxed{{{answer}}}"):
        nothing = one(grader, item(silent, entry))
        assert (nothing.verdict, nothing.reward) == ("no_answer", 0.0)
    assert one(grader, item(f"\\boxed{{{answer}}} or \\boxed{{-1}}", entry)).verdict == "incorrect"
    assert one(grader, item(f"\\boxed{{{answer}}}", entry, prompt="<think>\n")).verdict == "no_answer"


def test_words_in_a_box_may_stand_in_latex(grader: Grader) -> None:
    entry = entry_of(YES)
    answer = entry["entry"]["answer"]
    for said in (f"\\text{{{answer}}}", f"$\\mathrm{{ {answer} }}$"):
        assert one(grader, item(f"\\boxed{{{said}}}", entry)).extracted == answer


def test_a_scorer_sees_tuples_where_the_library_made_tuples(grader: Grader) -> None:
    entry = entry_of(GRIDS)
    assert json.loads(json.dumps(entry)) != entry
    assert one(grader, item(f"\\boxed{{{entry['entry']['answer']}}}", entry)).verdict == "correct"


def test_a_scorer_that_fails_is_an_error_and_no_wrong_answer(grader: Grader) -> None:
    result = one(grader, item("\\boxed{yes}", entry_of(FACTORS)))
    assert (result.verdict, result.reward, result.scored) == ("error", 0.0, False)
    assert "ValueError" in result.detail
    other = one(grader, item("\\boxed{1}", entry_of(Task(name="lcm", settings={"max_value": 9}))))
    assert other.verdict == "error"
    assert "the grader was not told of the task lcm" in other.detail


@pytest.mark.usefixtures("warm_graders")
def test_a_scorer_has_the_time_and_weight_of_all_grading() -> None:
    """The countdown scorer evaluates the answer that it is given, and some answers take forever."""
    entry = entry_of(COUNTDOWN)
    said = ("9**9**9**9", entry["entry"]["answer"], "1 + 1")
    config = RewardConfig(workers=1, timeout_s=1.0, correct_weight=2.0)
    with Grader.from_config(config, [COUNTDOWN]) as hurried:
        endless, right, partly = hurried.grade([item(f"\\boxed{{{answer}}}", entry) for answer in said])
    assert (endless.verdict, endless.scored) == ("timeout", False)
    assert (right.verdict, right.reward) == ("correct", 2.0)
    assert (partly.verdict, partly.reward, partly.terms) == ("incorrect", 0.1, {"partial": 0.1})


@pytest.mark.usefixtures("warm_graders")
def test_a_library_that_does_not_load_is_reported_by_every_item() -> None:
    unknown = Task(name="chain_sums")
    with Grader(workers=1, tasks=[unknown]) as grader:
        (result, plain) = grader.grade(
            [item("\\boxed{1}", {**entry_of(SUM), "task": "chain_sums"}), ("\\boxed{2}", "2")]
        )
    assert result.verdict == "error"
    assert "did you mean chain_sum?" in result.detail
    assert plain.verdict == "correct"
