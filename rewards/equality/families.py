r"""Families of numbers, one for every integer → equal or not: 7k + 3, k ∈ Z is 7n - 4, n ∈ Z, and x ≡ 3 (mod 7).

One side at least says that its letter is any integer. Where none does, x = 7k + 3 is x = 7n + 3 and no more: k may be
a number of the problem's.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from rewards.equality import mathematics
from rewards.equality.conditions import is_over_integers
from rewards.equality.defined import is_evaluable
from rewards.equality.relations import residue_class
from rewards.equality.rule import Equal
from rewards.reading.names import names_one
from rewards.reading.parse import Expr, Unparsed, is_scalar, parse
from rewards.reading.shapes import Conditioned, Expression, Items, Node, Relation

MAX_FAMILIES = 6
_PARAMETERS = frozenset("jklmn")
"""Letters that stand for an integer where nothing is said of them: y = 2x + 3 is a line."""


@dataclass(frozen=True, slots=True)
class Family:
    """start + step · letter for every integer; `name` is what it is equated with, or ""."""

    name: str
    letter: str
    start: Expr
    step: Expr


def families(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """True where both are the same families; everything else is left to the other rules."""
    if not _says_so(reference) and not _says_so(answer):
        return None
    try:
        ours, theirs = _families(reference), _families(answer)
        if ours is None or theirs is None or len(ours[0]) != len(theirs[0]):
            return None
        return _same_families(ours[0], theirs[0], said=ours[1] or theirs[1]) or None
    except mathematics.SYMPY_ERRORS:
        return None


def _same_families(ours: list[Family], theirs: list[Family], *, said: bool) -> bool:
    remaining = list(theirs)
    for family in ours:
        found = next((other for other in remaining if _same(family, other, said=said)), None)
        if found is None:
            return False
        remaining.remove(found)
    return True


def _says_so(node: Node) -> bool:
    """A cheap test: whether a node may state a family."""
    return isinstance(node, Conditioned) or (isinstance(node, Relation) and node.operators in {("=",), ("==",)})


def _families(node: Node) -> tuple[list[Family], bool] | None:
    """The families that a node states, and whether it says that they are over all integers."""
    congruent = residue_class(node)
    if congruent is not None:
        name, start, modulus = congruent
        return [Family(name, "", sympy.Integer(start), sympy.Integer(modulus))], True
    said = isinstance(node, Conditioned)
    if isinstance(node, Conditioned):
        if not is_over_integers(node.condition):
            return None
        node = node.body
    parts = node.elements if isinstance(node, Items) and said else (node,)
    found = [_family(part) for part in parts[: MAX_FAMILIES + 1]]
    if len(found) > MAX_FAMILIES or not all(family and (said or family.letter in _PARAMETERS) for family in found):
        return None
    return [family for family in found if family is not None], said


def _family(node: Node) -> Family | None:
    name, text = "", ""
    if isinstance(node, Relation) and node.operators == ("=",) and names_one(node.sides[0]):
        name, text = node.sides[0].strip("{} "), node.sides[1]
    elif isinstance(node, Expression):
        text = node.latex
    if not text:
        return None
    try:
        expression = parse(text)
    except Unparsed:
        return None
    letters = expression.free_symbols
    if len(letters) != 1 or not is_scalar(expression) or not is_evaluable(expression):
        return None
    letter = letters.pop()
    line = expression.doit()
    step = sympy.diff(line, letter)
    if step.free_symbols or step.is_zero is not False:
        return None
    return Family(name, letter.name, line.xreplace({letter: sympy.Integer(0)}), step)


def _same(one: Family, other: Family, *, said: bool) -> bool:
    if one.name and other.name and one.name != other.name:
        return False
    if not said:
        named = one.name == other.name != "" and one.name not in {one.letter, other.letter}
        return named and mathematics.same(one.step, other.step) and mathematics.same(one.start, other.start)
    if not (mathematics.same(one.step, other.step) or mathematics.same(one.step, -other.step)):
        return False
    return bool(sympy.cancel((one.start - other.start) / one.step).is_Integer)
