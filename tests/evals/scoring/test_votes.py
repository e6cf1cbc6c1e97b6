"""Votes: which answers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from evals.scoring.estimators import Votes
from evals.scoring.votes import MOST_COMPARED, count_votes
from rewards import Grader, GradeResult, Verdict
from tests.helpers.builders import outcome, result, sample


def test_wrong_answers_are_counted_by_what_they_state(grader: Grader) -> None:
    right = sample("7", Verdict.CORRECT)
    found = count_votes(
        [
            outcome("a", *map(sample, ("1/2", "0.5", r"\frac{2}{4}", "3")), right, sample(None, Verdict.NO_ANSWER)),
            outcome("b", *map(sample, ("x+1", "1+x", "x+2", "{broken", "{broken"))),
            # Graded incorrect although it is the same as the reference: the verdict counts, not the text.
            outcome("c", right, sample("7"), sample("7")),
        ],
        grader,
    )
    assert found[0] == Votes(right=1, wrong=(3, 1), silent=1)
    assert found[1] == Votes(right=0, wrong=(2, 2, 1), silent=0)
    assert found[2] == Votes(right=1, wrong=(2,), silent=0)


def test_comparisons_are_bounded(grader: Grader) -> None:
    """Beyond the limit, an answer equals only answers with the same text."""
    many = [str(number) for number in range(10, 10 + MOST_COMPARED)]
    (votes,) = count_votes([outcome("a", *map(sample, [*many, *many, "10.0", "99", "99"]))], grader)
    assert votes.wrong == (2,) * (MOST_COMPARED + 1) + (1,)


def test_answers_are_compared_in_a_form_that_the_grader_reads() -> None:
    """A grader that reads only `####` finds no answer in a box, and no two answers would be the same."""
    asked: list[tuple[str, str]] = []

    def grade(items: Sequence[tuple[str, str]]) -> list[GradeResult]:
        asked.extend(items)
        return [result() for _ in items]

    reads_hashes = SimpleNamespace(config=SimpleNamespace(answer_forms=("gsm8k_hashes", "boxed")), grade=grade)
    (votes,) = count_votes([outcome("a", *map(sample, ("1/2", "1/2", "0.5")))], cast("Grader", reads_hashes))
    assert asked == [("#### 0.5", "1/2")]
    assert votes == Votes(right=0, wrong=(3,), silent=0)
