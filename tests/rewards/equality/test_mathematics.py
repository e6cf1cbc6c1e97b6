"""The identity test on textbook identities, and on functions that only look alike."""

from __future__ import annotations

import pytest

from rewards.equality.mathematics import same_direction, same_expression

MANY = "abcdfghjklmnop"  # without e and i, which are constants


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sin^2 x + \cos^2 x", "1"),
        ("(a+b)^3", "a^3 + 3a^2b + 3ab^2 + b^3"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\ln(x^2)", r"2\ln x"),
        (r"\tan(2x)", r"\frac{2\tan x}{1-\tan^2 x}"),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        ("+".join(MANY), "+".join(reversed(MANY))),
    ],
)
def test_identities_hold(one: str, other: str) -> None:
    assert same_expression(one, other)
    assert same_expression(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sin^2 x - \cos^2 x", "1"),
        ("(a+b)^3", "a^3 + b^3"),
        ("x", "x + 10^{-40}x"),
        ("x^2", "x^3"),
        ("2^x", "2^{-x}"),
        ("x - y", "y - x"),
        ("+".join(MANY), "+".join(MANY[:-1]) + "-" + MANY[-1]),
    ],
)
def test_other_functions_are_told_apart(one: str, other: str) -> None:
    assert not same_expression(one, other)
    assert not same_expression(other, one)


@pytest.mark.parametrize(
    ("left", "right", "same", "same_signed"),
    [
        (("y", "2x + 3"), ("2x - y", "-3"), True, False),
        (("y", "2x + 3"), ("2y", "4x + 6"), True, True),
        (("y", "2x + 3"), ("y", "2x + 4"), False, False),
        (("y", "2x"), ("z", "2x"), False, False),
    ],
)
def test_equations_that_differ_by_a_constant_factor(
    left: tuple[str, str], right: tuple[str, str], same: bool, same_signed: bool
) -> None:
    assert same_direction(left, right, signed=False) == same
    assert same_direction(left, right, signed=True) == same_signed
