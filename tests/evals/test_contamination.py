"""Training problems that are also in a suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.contamination import contamination
from evals.suites import SUITES, find_suite, load_suite
from rewards.overlap import between
from rollout.types import Problem

STORY = "a farmer has twelve cows and buys seven more at the market before selling {} of them to a neighbour"


def problems(*texts: str, prefix: str = "p") -> list[Problem]:
    return [Problem(id=f"{prefix}{index}", text=text, answer="1") for index, text in enumerate(texts)]


def test_training_problems_that_a_suite_holds_are_counted() -> None:
    formula = "find the remainder when the number m plus n is divided by one thousand where {} is given"
    suite = problems(STORY.format(3), formula.format("it"), "What is 2 + 2?")
    training = problems(
        STORY.format("3!"),  # the same words: punctuation does not count
        STORY.format(5),  # the same story with other numbers
        "Something else entirely",
        *(formula.format(name) for name in "abcdefg"),  # shared by more than five problems, so a formula
    )
    (found,) = contamination(training, {"mine": suite})
    assert (found.training, found.exact, found.ngram, found.touched) == (10, 1, 1, 1)
    assert found.examples == (("p0", "mine:p0"), ("p1", "mine:p0"))
    assert "2 of 10 training problems overlap mine" in found.describe()
    # The same file on both sides, hence the same ids.
    (same,) = contamination(suite, {"mine": suite})
    assert (same.exact, bool(same)) == (3, True)
    assert not contamination(problems("Nothing alike"), {"mine": suite})[0]


@pytest.mark.shared
def test_two_passes_find_what_one_finds(shared_data: Path) -> None:
    training = load_suite(find_suite(str(shared_data / "math_train.jsonl"))).problems[6500:]
    suite = load_suite(SUITES["math500"], str(shared_data)).problems
    (found,) = contamination(training, {"math500": suite})
    pairs = between(*([(f"{mark}{p.id}", p.text) for p in group] for mark, group in (("", training), (":", suite))))
    assert found.exact + found.ngram == len({pair.left for pair in pairs})
    assert found.touched == len({pair.right for pair in pairs})
    assert found.exact >= 1  # math-train-07163 is math500-046
