"""Completions whose answer, or whose refusal, a reader can tell; the tricks are in cases/completions.jsonl."""

from __future__ import annotations

import pytest

from rewards.extraction.extract import Extracted, Refused, extract


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"So \boxed{72}.", "72"),
        (r"\boxed{3}, so we get a total of \boxed{72}", "72"),
        (r"$x = \boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{2} and \boxed{3}", "2, 3"),
        (r"$y_1 = \boxed{2}$ and $y_2 = \boxed{3}$", "y_1=2, y_2=3"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"\boxed{\boxed{72}}", "72"),
        (r"\boxed{\boxed{2}, \boxed{3}}", "2, 3"),
        # What stands around the box is not in the answer, as in the solutions of MATH.
        (r"$2x^3+17x^3 = \boxed{19}x^3$", "19"),
        (r"$22 = 11\cdot\boxed{2}$", "2"),
        (r"$x = -\frac32-\boxed{2}$ or $x - \boxed{2}$", "2"),
        ("the answer:\n- \\boxed{72}", "72"),
    ],
)
def test_the_answer_is_the_last_box_or_the_last_row_of_boxes(completion: str, answer: str) -> None:
    found = extract(completion, ("boxed",))
    assert isinstance(found, Extracted)
    assert found.answer == answer


@pytest.mark.parametrize(
    ("completion", "rule"),
    [
        ("So 72.", "no_complete_box"),
        (r"\boxed{72", "no_complete_box"),
        (r"\boxed{ }", "empty_box"),
        (r"\boxed{4 \boxed{72}}", "nested_boxes"),
        (r"The answer is not \boxed{72}.", "negated"),
        (r"$x = - \boxed{72}$", "sign_before_box"),
        ("\\[\n-\\boxed{72}\n\\]", "sign_before_box"),
        (r"So it is -{\boxed{72}}.", "sign_before_box"),
        (r"$2x = -144 \implies x \Rightarrow - \$\boxed{72}$", "sign_before_box"),
        (r"**-\boxed{72}**", "sign_before_box"),
        (r"$x_1 = \pm\boxed{2}$, $x_2 = \boxed{3}$", "sign_before_box"),
        (r"either 71 or \boxed{72}", "alternatives"),
        (r"\boxed{72}. Hmm, I made a mistake.", "retracted"),
        (r"\boxed{72} so \boxed{8", "unfinished_box_follows"),
        ("\\boxed{72}\nUser: and now?", "another_turn_follows"),
    ],
)
def test_what_is_refused_is_refused_by_name(completion: str, rule: str) -> None:
    found = extract(completion, ("boxed",))
    assert isinstance(found, Refused)
    assert found.rule == rule
