r"""Arbitrary constants: x^2 + C is x^2 + c, C_1 e^x + C_2 is c_1 e^x + c_2, and \sin^2 x + C is -\cos^2 x + C.

A constant of integration may have any name and absorbs any number. A letter counts as one if at least one side writes
it in a usual form, C, C_1, K_2 or "constant", and the expression also has a variable.
"""

from __future__ import annotations

import itertools
import re

import sympy

from rewards.equality import mathematics
from rewards.reading.parse import Expr, Unparsed, is_scalar

MAX_CONSTANTS = 3

_MENTIONED = re.compile(r"(?<![A-Za-z\\])[A-DckK](?![A-Zabdf-mo-q])|const|[A-DckK]_?\{?\d|[A-DckK]e(?![A-Za-z])")
"""A cheap test before anything is parsed."""
_CONSTANT = re.compile(r"C|[CcKk]_?\{?\d\}?|const(?:ant)?")
_PERHAPS = re.compile(r"[A-DckK](?:_?\{?\d\}?)?|const(?:ant)?")
_VARIABLE = re.compile(r"[xyztuvwrsn]|\\?theta")


def same_up_to_constants(one: str, other: str) -> bool:
    """Whether two cleaned expressions differ only in the names and values of their arbitrary constants."""
    if not (_MENTIONED.search(one) and _MENTIONED.search(other)):
        return False
    left, right = mathematics.parsed_alike(one, other)
    if not (is_scalar(left) and is_scalar(right)):
        return False
    shared = left.free_symbols & right.free_symbols
    if not any(_VARIABLE.fullmatch(symbol.name) for symbol in shared):
        return False
    ours, theirs = (sorted(side.free_symbols - shared, key=str) for side in (left, right))
    if len(ours) != len(theirs) or len(ours) > MAX_CONSTANTS or not _are_constants(ours, theirs):
        return False
    for order in itertools.permutations(ours):
        renamed = right.xreplace(dict(zip(theirs, order, strict=True)))
        try:
            if mathematics.same(left, renamed) or _differ_by_a_number(left, renamed):
                return True
        except mathematics.SYMPY_ERRORS as error:
            raise Unparsed(f"{type(error).__name__}: {error}") from error
    return False


def _are_constants(ours: list[Expr], theirs: list[Expr]) -> bool:
    """Whether all can be constants, and on one side all are written in a usual form."""
    if not all(_PERHAPS.fullmatch(symbol.name) for symbol in (*ours, *theirs)):
        return False
    return any(all(_CONSTANT.fullmatch(symbol.name) for symbol in side) for side in (ours, theirs))


def _differ_by_a_number(left: Expr, right: Expr) -> bool:
    """Whether both are a function plus a multiple of the one constant that they share, and the functions differ by a
    number."""
    shared = left.free_symbols & right.free_symbols
    constants = [symbol for symbol in shared if _CONSTANT.fullmatch(symbol.name)]
    if len(constants) != 1:
        return False
    rates = [sympy.diff(side, constants[0]).doit() for side in (left, right)]
    if not all(rate.is_Rational and rate for rate in rates):
        return False
    return mathematics.is_constant(left - right - (rates[0] - rates[1]) * constants[0])
