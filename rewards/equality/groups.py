"""Several values: lists, sets, points, intervals, vectors and matrices, compared by their elements."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.equality import regions, relations
from rewards.equality.rule import Equal, in_any_order, in_order
from rewards.equality.values import latex_of, same_expressions, value_of
from rewards.reading.read import read
from rewards.reading.shapes import (
    Bracketed,
    Choice,
    Combination,
    Domain,
    Expression,
    Items,
    Matrix,
    Node,
    Relation,
    Words,
)

CHOICE_LETTERS = frozenset("ABCDEFGHIJ")
_VECTORS = {("(", ")"), (r"\langle", r"\rangle")}
"""Brackets of the same vector; with two components, square ones are an interval's."""
_NAMED_POINT = re.compile(r"(?P<name>(?![LNOU])[A-Z]'?(?:_\{?\w\}?)?)\s*(?P<point>\(.+\))", re.DOTALL)
"""P(2,3). N(0,1) and U(0,1) are distributions, O(2,3) is a group, L(0,1) a space."""


def named_points(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Beside a point, P(2,3) is P = (2,3); a reference that has a value, as P(5,2) = 20, is no point."""
    for node, other in ((reference, answer), (answer, reference)):
        if not isinstance(node, Expression) or not _is_point(other):
            continue
        match = _NAMED_POINT.fullmatch(node.latex)
        if match and _is_point(read(match["point"])) and (node is answer or value_of(node) is None):
            named = Relation((match["name"], match["point"]), ("=",))
            return equal(named, other) if node is reference else equal(other, named)
    return None


def _is_point(node: Node) -> bool:
    if isinstance(node, Relation):
        return node.operators == ("=",) and _is_point(read(node.sides[1]))
    return isinstance(node, Bracketed) and node.opening == "(" and node.closing == ")"


def items(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Lists and sets have no order; a set in braces has no repetitions; a list of one value is that value."""
    if not isinstance(reference, Items) and not isinstance(answer, Items):
        return None
    region = regions.equal_if_regions(reference, answer)
    if region is not None:
        return region
    if isinstance(reference, Items) and isinstance(answer, Items):
        if (reference.joined_by == "or") != (answer.joined_by == "or") and (
            any(map(_is_name, answer.elements)) or relations.leaves_open(reference) or relations.leaves_open(answer)
        ):
            return False  # "Alice or Bob" leaves open which, "x = 1 or x = 2" does not
        roots = relations.indexed_roots(reference, answer)
        if roots is not None:
            return in_any_order(*roots, equal)
        if relations.is_assignment_list(reference):
            return relations.equal_assignments(reference, answer, equal)
        left: Sequence[Node] = reference.elements
        right: Sequence[Node] = answer.elements
        if "set" in (reference.kind, answer.kind):
            left, right = _distinct(left, equal), _distinct(right, equal)
        return in_any_order(left, right, equal)
    lone, other = (reference, answer) if isinstance(reference, Items) else (answer, reference)
    assert isinstance(lone, Items)
    if isinstance(other, Bracketed):
        if lone is reference and relations.is_assignment_list(lone):
            return relations.equal_assignments(lone, Items(other.elements), equal)
        if lone.kind == "set" and len(lone.elements) == 1:
            return equal(lone.elements[0], other)
        # The answer may leave out a point's brackets, but not add them: 3, 4 for (3, 4); (-\infty, 4) is no point.
        return (
            lone is answer
            and lone.kind == "list"
            and (other.opening, other.closing) == ("(", ")")
            and not any(isinstance(end, Expression) and r"\infty" in end.latex for end in other.elements)
            and in_order(other.elements, relations.coordinates(lone), equal)
        )
    # "3/4 or 0.75" is one value stated twice; "75, 75" is two values.
    said_twice = lone.kind == "set" or lone.joined_by == "or"
    members = _distinct(lone.elements, equal) if said_twice else lone.elements
    if len(members) != 1:
        return False
    return equal(members[0], other) if lone is reference else equal(other, members[0])


def _is_name(node: Node) -> bool:
    return isinstance(node, Words | Choice) or (isinstance(node, Expression) and node.latex in CHOICE_LETTERS)


def _distinct(elements: Sequence[Node], equal: Equal) -> list[Node]:
    kept: list[Node] = []
    for element in elements:
        if not any(equal(other, element) for other in kept):
            kept.append(element)
    return kept


def bracketed(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Points and vectors by component, intervals by ends and brackets."""
    if isinstance(reference, Bracketed) and isinstance(answer, Bracketed):
        if len(reference.elements) != len(answer.elements):
            return False
        pairs = {(node.opening, node.closing) for node in (reference, answer)}
        vectors = _VECTORS if len(reference.elements) == 2 else {*_VECTORS, ("[", "]")}
        if len(pairs) > 1 and not pairs <= vectors:
            return False
        return in_order(reference.elements, answer.elements, equal)
    for matrix, vector in ((reference, answer), (answer, reference)):
        if isinstance(matrix, Matrix) and isinstance(vector, Bracketed):
            column = [row[0] for row in matrix.rows if len(row) == 1]
            return (
                len(column) == len(matrix.rows) and vector.opening != "[" and in_order(column, vector.elements, equal)
            )
    return None


def matrices(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Matrices by entry; an unevaluated sum or product of matrices by math-verify."""
    if isinstance(reference, Matrix) and isinstance(answer, Matrix):
        return in_order(reference.rows, answer.rows, lambda one, other: in_order(one, other, equal))
    for matrix, other in ((reference, answer), (answer, reference)):
        if isinstance(matrix, Matrix):
            return (
                isinstance(other, Expression)
                and r"\begin" in other.latex
                and same_expressions(_matrix_latex(matrix), other.latex)
            )
    return None


def _matrix_latex(matrix: Matrix) -> str:
    rows = [" & ".join(latex_of(cell) or "?" for cell in row) for row in matrix.rows]
    return r"\begin{pmatrix}" + r" \\ ".join(rows) + r"\end{pmatrix}"


def sets(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Unions, differences and named sets, compared as sets of reals, or else by their parts; brackets are a set only as
    a region."""
    kinds = (Combination, Domain, Bracketed)
    if isinstance(reference, kinds) or isinstance(answer, kinds):
        if isinstance(reference, Domain) and isinstance(answer, Domain):
            return reference.name == answer.name
        region = regions.equal_if_regions(reference, answer)
        if region is not None:
            return region
        if isinstance(reference, Combination) and isinstance(answer, Combination):
            matching = in_order if reference.operator == "setminus" else in_any_order
            return reference.operator == answer.operator and matching(reference.parts, answer.parts, equal)
        return False
    return None
