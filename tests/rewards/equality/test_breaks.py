"""Piecewise functions against their values, computed with fractions at the ends of every piece and in between."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.equality.mathematics import same_expression

ends = st.lists(st.integers(-2_000, 2_000), min_size=1, max_size=3)


def distances(breaks: list[int], x: Fraction) -> Fraction:
    return sum((abs(x - end) for end in breaks), Fraction(0))


def written(breaks: list[int]) -> str:
    return "+".join(f"|x-({end})|" for end in breaks)


@settings(max_examples=40, deadline=None)
@given(ends, ends)
def test_sums_of_distances_are_equal_where_their_values_are(one: list[int], other: list[int]) -> None:
    """Such a sum is linear between its breakpoints, so its values at the breakpoints and beyond them decide."""
    everywhere = sorted({*one, *other})
    points = [Fraction(everywhere[0] - 1), *map(Fraction, everywhere), Fraction(everywhere[-1] + 1)]
    equal = all(distances(one, x) == distances(other, x) for x in points)
    assert same_expression(written(one), written(other)) == equal


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10**6))
def test_a_piece_far_away_is_seen(end: int) -> None:
    assert not same_expression(f"|x-{end}|", f"{end}-x")
    assert not same_expression(rf"\sqrt{{(x-{end})^2}}", f"{end}-x")
    assert same_expression(rf"\sqrt{{(x-{end})^2}}", f"|{end}-x|")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\lfloor x/100 \rfloor", "0"),
        (r"\max(x, -50)", "x"),
        (r"|\ln x - 5|", r"5 - \ln x"),
        ("|x^2-400|", "400-x^2"),
        ("|x-10|+y", "10-x+y"),
        ("|x-10|+|x-20|", "|2x-30|"),
    ],
)
def test_what_agrees_in_one_piece_only_is_different(one: str, other: str) -> None:
    assert not same_expression(one, other)
    assert not same_expression(other, one)
