"""Completions with an answer, or none, that any reader can tell; the tricks are in cases/completions.jsonl."""

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
        # Nothing else around a box is part of the answer: no unit, and nothing of a formula, as in MATH and AIME.
        (r"$\boxed{72}\text{ cm}$", "72"),
        (r"\boxed{72} km/h", "72"),
        (r"$\boxed{72}\text{ m/s}$", "72"),
        (r"$\boxed{72}\text{ kg}\cdot\text{m}$", "72"),
        (r"$\boxed{72}$ feet per second.", "72"),
        (r"$\boxed{72}$ miles an hour", "72"),
        (r"$\boxed{72}$ cm$^2$ or cm²", "72"),
        (r"\boxed{72} cm²", "72"),
        (r"\boxed{72} meters squared", "72"),
        (r"\boxed{72} degrees Celsius", "72"),
        (r"\boxed{72} dollars per day", "72"),
        (r"so $2(a+b) = \sqrt{\boxed{448}}$.", "448"),
        (r"$= \frac{\boxed{453}}{2^{14}}.$", "453"),
        (r"$3 \cdot 16 \cdot 6 \cdot 720 = 207\boxed{360}$", "360"),
        (r"$= \boxed{\frac{284}{3}}\pi.$", r"\frac{284}{3}"),
        (r"$2x^3+17x^3 = \boxed{19}x^3$", "19"),
        (r"$22 = 11\cdot\boxed{2}$", "2"),
        (r"$x = -\frac32-\boxed{2}$ or $x - \boxed{2}$", "2"),
        (r"$\angle A = \boxed{72}^\circ$", "72"),
        (r"So x=\boxed{72} is the answer.", "72"),
        (r"\[ \boxed{72} is what we get (the total)!", "72"),
        (r"$\boxed{72} \text{ ways}$", "72"),
        (r"Step 2 \boxed{72} - done", "72"),
        (r"(2) \boxed{72} (since $8 \cdot 9 = 72$)", "72"),
        (r"He pays $5 for 3 apples - \boxed{72}", "72"),
        (r"$70 + 2 = 72 \quad \boxed{72}$", "72"),
        (r"$f(\boxed{72}) = 0$", "72"),
        (r"*\boxed{72}*!", "72"),
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
        (r"$\text{It is not }\boxed{72}$", "negated"),
        (r"either 71 or \boxed{72}", "alternatives"),
        (r"$71 \text{ or } \boxed{72}$", "alternatives"),
        (r"$\boxed{72}\text{ or } 71$ or 70", "alternatives"),
        (r"\boxed{72}. Hmm, I made a mistake.", "retracted"),
        (r"\boxed{72} so \boxed{8", "unfinished_box_follows"),
        ("\\boxed{72}\nUser: and now?", "another_turn_follows"),
        (r"$x = - \boxed{72}$", "sign_before_box"),
        ("\\[\n-\\boxed{72}\n\\]", "sign_before_box"),
        (r"So it is -{\boxed{72}}.", "sign_before_box"),
        (r"$2x = -144 \implies x \Rightarrow - \$\boxed{72}$", "sign_before_box"),
        (r"**-\boxed{72}**", "sign_before_box"),
        (r"$x_1 = \pm\boxed{2}$, $x_2 = \boxed{3}$", "sign_before_box"),
        (r"$x = -\left(\boxed{72}\right)$", "sign_before_box"),
        (r"$x = \left(-\boxed{72}\right)$", "sign_before_box"),
        (r"$(-\boxed{72})$", "sign_before_box"),
        (r"$-\,\boxed{72}$", "sign_before_box"),
        (r"$x = -\mathbf{\boxed{72}}$", "sign_before_box"),
        ("8-11=-3\n-\\boxed{-3}", "sign_before_box"),
    ],
)
def test_what_is_refused_is_refused_by_name(completion: str, rule: str) -> None:
    found = extract(completion, ("boxed",))
    assert isinstance(found, Refused)
    assert found.rule == rule
