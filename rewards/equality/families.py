r"""Families of numbers, one for every integer → equal or not: 7k + 3, k ∈ Z is 7n - 4, n ∈ Z, and x ≡ 3 (mod 7).

The reference must say that its letter is any integer, or be a congruence. Otherwise the letter may be a number from
the problem, and a condition in the answer does not turn the reference into a family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import sympy

from rewards.equality import mathematics
from rewards.equality.conditions import is_over_integers
from rewards.equality.defined import is_evaluable
from rewards.equality.relations import residue_class
from rewards.equality.rule import Equal, in_any_order
from rewards.reading.names import names_one
from rewards.reading.parse import Expr, Unparsed, is_scalar, parse
from rewards.reading.shapes import Conditioned, Expression, Items, Node, Relation

MAX_FAMILIES = 6
_PARAMETERS = frozenset("jklmn")
"""Letters that stand for an integer if nothing is said about them; x is not one: y = 2x + 3 is a line."""


@dataclass(frozen=True, slots=True)
class Family:
    """start + step · letter for every integer letter; `name` is the name that it is equated with, or ""."""

    name: str
    letter: str
    start: Expr
    step: Expr


def families(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """True if both are the same families; everything else is left to the other rules."""
    if not _may_state_one(reference) or not _may_state_one(answer, bare=True):
        return None
    try:
        ours, theirs = _families(reference), _families(answer)
        if ours is None or theirs is None or not ours[1]:
            return None
        return in_any_order(ours[0], theirs[0], _same) or None
    except mathematics.SYMPY_ERRORS:
        return None


def _may_state_one(node: Node, *, bare: bool = False) -> bool:
    """A cheap test for whether a node may state a family. `bare` includes families without a condition."""
    if isinstance(node, Conditioned) or (isinstance(node, Relation) and node.operators == ("==",)):
        return True
    return bare and isinstance(node, Expression | Relation)


def _families(node: Node) -> tuple[list[Family], bool] | None:
    """The families that a node states, and whether it says that they range over all integers."""
    congruent = residue_class(node)
    if congruent is not None:
        name, start, modulus = congruent
        return [Family(name, "", sympy.Integer(start), sympy.Integer(modulus))], True
    condition = node.condition if isinstance(node, Conditioned) else ""
    stated = bool(condition)
    if isinstance(node, Conditioned):
        if not is_over_integers(condition):
            return None
        node = node.body
    parts = node.elements if isinstance(node, Items) and stated else (node,)
    found = [_family(part) for part in parts[: MAX_FAMILIES + 1]]
    if len(found) > MAX_FAMILIES or not all(family and _is_any_integer(family.letter, condition) for family in found):
        return None
    return [family for family in found if family is not None], stated


def _is_any_integer(letter: str, condition: str) -> bool:
    """Whether a condition says that the letter is any integer; without a condition, whether the letter usually is."""
    return bool(_alone(letter, condition)) if condition else letter in _PARAMETERS


def _alone(letter: str, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<![\\A-Za-z]){re.escape(letter)}(?![A-Za-z])", text)


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
    # With a step of one, any start gives the same integers; and a_n = 2n - 1 is a formula in n.
    if step.free_symbols or step.is_zero is not False or abs(step) == 1 or _alone(letter.name, name):
        return None
    return Family(name, letter.name, line.xreplace({letter: sympy.Integer(0)}), step)


def _same(one: Family, other: Family) -> bool:
    if one.name and other.name and one.name != other.name:
        return False
    if not (mathematics.same(one.step, other.step) or mathematics.same(one.step, -other.step)):
        return False
    return bool(sympy.cancel((one.start - other.start) / one.step).is_Integer)
