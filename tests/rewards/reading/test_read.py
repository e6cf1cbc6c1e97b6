"""Texts whose kind any reader can tell, and the unknown that an inequality is about."""

from __future__ import annotations

import pytest

from rewards.reading.read import MAX_NESTING, read
from rewards.reading.shapes import Items, Relation, Unusable
from rewards.reading.variables import variable
from rewards.spelling.clean import clean


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1,234", "Exact"),
        ("twelve", "Exact"),
        (r"2\sqrt{3}", "Expression"),
        ("an ellipse", "Words"),
        (r"5 \text{ cm}", "Quantity"),
        ("3 million", "Exact"),
        ("(C) 42", "Choice"),
        ("2:30 p.m.", "Moment"),
        ("2:3", "Ratio"),
        ("1011_2", "Based"),
        ("1, 2 and 3", "Items"),
        (r"1 \pm \sqrt{2}", "Items"),
        ("(1, 2)", "Bracketed"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", "Matrix"),
        (r"\mathbb{R}", "Domain"),
        (r"(0,1) \cup (2,3)", "Combination"),
        ("x = 5", "Relation"),
        (r"\{x | x > 3\}", "Relation"),
        (r"\{n^2 | n > 3\}", "Expression"),
        (r"k\pi, k \in \mathbb{Z}", "Conditioned"),
        (r"\sqrt{2} \approx 1.414", "Approximation"),
        ("?", "Unusable"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert type(read(clean(text))).__name__ == kind


def test_a_comma_between_thousands_separates_where_it_has_to() -> None:
    assert read("1,234", thousands=False) == Items((read("1"), read("234")))
    assert read(r"\{1,234\}") == Items((read("1"), read("234")), "set")


def test_reading_ends_where_texts_stand_in_too_many_others() -> None:
    def bracketed(depth: int) -> str:
        return "(" * depth + "1" + ")" * depth

    assert read(bracketed(MAX_NESTING)) == read("1")
    assert isinstance(read(bracketed(MAX_NESTING + 1)), Unusable)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"-2 < x \le 7", "x"),
        (r"x \in (-2, 7]", "x"),
        (r"x < 1 \text{ or } x > 3", "x"),
        (r"\theta > \pi", r"\theta"),
        (r"x \ne 3", "x"),
        ("x = 3", None),
        ("x < y", None),
        ("x < 2a", None),
        (r"x < 1 \text{ or } y > 3", None),
    ],
)
def test_the_unknown_of_an_inequality(text: str, name: str | None) -> None:
    assert variable(read(clean(text))) == name


def test_sides_are_kept_as_written() -> None:
    assert read("x = y < 5") == Relation(("x", "y", "5"), ("=", "<"))
