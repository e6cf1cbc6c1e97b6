r"""Answers → sets of real numbers: intervals, unions, inequalities in one variable, all real numbers.

-2 < x ≤ 7, x ∈ (-2, 7] and (-2, 7] are the same region. Anything else is None, and other rules decide.
"""

from __future__ import annotations

import itertools
from typing import Any

from rewards.equality import mathematics
from rewards.equality.values import latex_of
from rewards.reading.parse import Unparsed
from rewards.reading.read import read
from rewards.reading.shapes import Bracketed, Combination, Domain, Expression, Items, Node, Relation
from rewards.reading.variables import about, variable

Region = Any  # a sympy set
MAX_INTERVALS = 12
MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
"""The operator of an inequality after its sides are swapped."""


def equal_if_regions(reference: Node, answer: Node) -> bool | None:
    """Compare as sets of reals if both are regions and at least one cannot be anything else."""
    if not (_is_clearly_region(reference) or _is_clearly_region(answer)):
        return None
    names = (variable(reference), variable(answer))
    if None not in names and names[0] != names[1]:
        return False
    try:
        left, right = region(reference), region(answer)
        if left is None or right is None:
            return None
        return mathematics.same_set(left, right)
    except (Unparsed, TypeError, NotImplementedError, ValueError):
        return None


def _is_clearly_region(node: Node) -> bool:
    if isinstance(node, Combination | Domain):
        return True
    if isinstance(node, Relation):
        return variable(node) is not None
    if isinstance(node, Items):
        return bool(node.elements) and all(
            isinstance(part, Relation) and variable(part) is not None for part in node.elements
        )
    if isinstance(node, Bracketed):
        return any(_is_infinite(part) for part in node.elements)
    return False


def _is_infinite(node: Node) -> bool:
    return isinstance(node, Expression) and node.latex.replace(" ", "").lstrip("+-") == r"\infty"


def region(node: Node) -> Region | None:
    """The set of reals that a node describes, or None if it describes something else."""
    if isinstance(node, Domain):
        return mathematics.domain(node.name)
    if isinstance(node, Combination):
        parts = [region(part) for part in node.parts]
        return None if any(part is None for part in parts) else mathematics.combine(node.operator, parts)
    if isinstance(node, Bracketed):
        return _interval(node)
    if isinstance(node, Items):
        return _from_items(node)
    if isinstance(node, Relation):
        return _from_relation(node)
    return None


def _interval(node: Bracketed) -> Region | None:
    if len(node.elements) != 2 or node.opening not in "([" or node.closing not in ")]":
        return None
    ends = [latex_of(part) for part in node.elements]
    if ends[0] is None or ends[1] is None:
        return None
    outer = ((node.opening == "[", node.elements[0]), (node.closing == "]", node.elements[1]))
    if any(closed and _is_infinite(end) for closed, end in outer):
        return None  # of the extended line, not of the reals
    return mathematics.interval(ends[0], ends[1], left_open=node.opening == "(", right_open=node.closing == ")")


def _from_items(node: Items) -> Region | None:
    """{1, 2} is a finite set; x < 1 or x > 3, like (0,1) or (2,3), is a union; x > 1 and x < 3 is an intersection.

    Commas leave open which; two inequalities joined by "and" do not: x < 1 and x > 3 is empty.
    """
    if node.joined_by == "or" and all(isinstance(part, Bracketed) for part in node.elements):
        return _apart([region(part) for part in node.elements])
    if node.elements and all(isinstance(part, Relation) for part in node.elements):
        parts = [region(part) for part in node.elements]
        if any(part is None for part in parts) or variable(node) is None:
            return None
        met = mathematics.combine("cap", parts)
        if node.joined_by == "or" or (met.is_empty and node.joined_by != "and"):
            return mathematics.combine("cup", parts)
        return met
    if node.kind != "set":
        return None
    texts = [latex_of(part) for part in node.elements]
    return None if None in texts else mathematics.finite_set([text for text in texts if text is not None])


def _apart(parts: list[Region | None]) -> Region | None:
    """The union of disjoint intervals. If they overlap, "or" offers two answers to choose from, not one."""
    if len(parts) > MAX_INTERVALS or any(part is None for part in parts):
        return None
    meet = any(not mathematics.combine("cap", list(pair)).is_empty for pair in itertools.combinations(parts, 2))
    return None if meet else mathematics.combine("cup", parts)


def _from_relation(node: Relation) -> Region | None:
    name = variable(node)
    if name is None:
        return None
    if node.operators == ("in",):
        return region(read(node.sides[1], thousands=False))
    parts = []
    for position, operator in enumerate(node.operators):
        left, right = node.sides[position : position + 2]
        if about(left):
            parts.append(_side(left, operator, right))
        elif about(right):
            parts.append(_side(right, MIRRORED.get(operator, operator), left))
        else:
            return None
    met = mathematics.combine("cap", parts)
    return None if met.is_empty else met  # 3 < x < 1, with its ends swapped


def _side(side: str, operator: str, end: str) -> Region:
    """x < 3 is a ray, |x - 2| < 3 an interval around 2, and |x - 2| > 3 everything outside such an interval."""
    found = about(side)
    centre = found[1] if found else ""
    if not centre:
        return _ray(operator, end)
    ends = [f"({centre}) - ({end})", f"({centre}) + ({end})"]
    if operator == "!=":
        return _all_but(mathematics.finite_set(ends))
    is_open = operator in {"<", ">="}
    inside = mathematics.interval(ends[0], ends[1], left_open=is_open, right_open=is_open)
    if operator in {"<", "<="}:
        return inside
    return _all_but(inside)


def _all_but(left_out: Region) -> Region:
    return mathematics.combine("setminus", [mathematics.domain("R"), left_out])


def _ray(operator: str, end: str) -> Region:
    """x < 3 → (-\\infty, 3); x ≠ 3 → everything else."""
    if operator == "!=":
        return _all_but(mathematics.finite_set([end]))
    if operator in {"<", "<="}:
        return mathematics.interval(r"-\infty", end, left_open=True, right_open=operator == "<")
    return mathematics.interval(end, r"\infty", left_open=operator == ">", right_open=True)
