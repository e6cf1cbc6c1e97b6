"""Golden answers, one per line in cases/answers.tsv: which ones a careful reader accepts for a reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.judge import same_answer
from rewards.types import Verdict
from tests.helpers.both_paths import changed_by_short_cuts

CASES = Path(__file__).parent / "cases" / "answers.tsv"


def cases(*, both_ways: bool = False) -> list[tuple[str, str, str]]:
    """(expected, reference, answer) of each case; with `both_ways` only those with the same verdict the other way
    round."""
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3 or not both_ways]


@pytest.mark.parametrize(("expected", "reference", "answer"), cases())
def test_golden_answer(expected: str, reference: str, answer: str) -> None:
    verdict, rule = same_answer(answer, reference)
    assert (verdict is Verdict.CORRECT) == (expected == "T"), f"{verdict} by {rule}"


def test_the_fast_path_never_changes_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed_by_short_cuts(((answer, reference) for _, reference, answer in cases()), monkeypatch) == []


MANY = "1" + 1_000 * "0"


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        (r"10^{1000}", MANY, "correct"),
        (MANY, r"10^{1000}", "correct"),
        (MANY, MANY, "correct"),
        (f"{10**1500:,}", r"1 \times 10^{1500}", "correct"),
        (r"10^{5000}", "1" + 5_000 * "0", "correct"),
        ("9" * 1_200, "10^{1200} - 1", "correct"),
        (MANY + ".5", f"${MANY}.50$", "correct"),
        ("-" + MANY, MANY, "incorrect"),
        (MANY, MANY[:-1] + "1", "incorrect"),
        (MANY, r"10^{1001}", "incorrect"),
        ("9" * 1_200, "10^{1200} + 1", "incorrect"),
        ("5", MANY, "incorrect"),
        (MANY, "x", "unparseable"),
        (r"\frac{1}{3}", "0." + 1_500 * "3", "unparseable"),
    ],
    ids=lambda text: text[:12],
)
def test_numbers_over_the_limit_are_compared_digit_by_digit(reference: str, answer: str, verdict: str) -> None:
    assert same_answer(answer, reference)[0] == verdict


def test_equality_is_symmetric() -> None:
    uneven = []
    for expected, reference, answer in cases(both_ways=True):
        backwards, _ = same_answer(reference, answer)
        if (backwards is Verdict.CORRECT) != (expected == "T"):
            uneven.append((reference, answer))
    assert not uneven
