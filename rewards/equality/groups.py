"""Several values: lists, sets, points, intervals, vectors and matrices, compared by their elements."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.equality import regions, relations
from rewards.equality.rule import Equal
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
            return _same_members(*roots, equal)
        if relations.is_assignment_list(reference):
            return relations.equal_assignments(reference, answer, equal)
        left: Sequence[Node] = reference.elements
        right: Sequence[Node] = answer.elements
        if "set" in (reference.kind, answer.kind):
            left, right = _distinct(left, equal), _distinct(right, equal)
        return _same_members(left, right, equal)
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
            and _all_equal(other.elements, relations.coordinates(lone), equal)
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


def _same_members(left: Sequence[Node], right: Sequence[Node], equal: Equal) -> bool:
    """Whether the members match one to one. Equality is close enough to transitive for a greedy matching."""
    if len(left) != len(right):
        return False
    remaining = list(right)
    for element in left:
        match = next((i for i, other in enumerate(remaining) if equal(element, other)), None)
        if match is None:
            return False
        del remaining[match]
    return True


def bracketed(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Points and vectors by component, intervals by ends and brackets."""
    if isinstance(reference, Bracketed) and isinstance(answer, Bracketed):
        if len(reference.elements) != len(answer.elements):
            return False
        same = (reference.opening, reference.closing) == (answer.opening, answer.closing)
        vectors = {"(", r"\langle"} if len(reference.elements) == 2 else {"(", "[", r"\langle"}
        if not same and not {reference.opening, answer.opening} <= vectors:
            return False
        if not same and reference.opening == answer.opening:
            return False
        return _all_equal(reference.elements, answer.elements, equal)
    for matrix, vector in ((reference, answer), (answer, reference)):
        if isinstance(matrix, Matrix) and isinstance(vector, Bracketed):
            listed = [each.elements for each in vector.elements if isinstance(each, Bracketed) and each.opening == "["]
            if len(listed) == len(vector.elements):  # [[1, 2], [3, 4]], as in a program
                return matrices(matrix, Matrix(tuple(listed)), equal)
            column = [row[0] for row in matrix.rows if len(row) == 1]
            return (
                len(column) == len(matrix.rows) and vector.opening != "[" and _all_equal(column, vector.elements, equal)
            )
    return None


def matrices(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Matrices by entry; an unevaluated sum or product of matrices by math-verify."""
    if isinstance(reference, Matrix) and isinstance(answer, Matrix):
        shape = [len(row) for row in reference.rows]
        return shape == [len(row) for row in answer.rows] and all(
            _all_equal(one, other, equal) for one, other in zip(reference.rows, answer.rows, strict=True)
        )
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
            return reference.operator == answer.operator and _all_equal(reference.parts, answer.parts, equal)
        return False
    return None


def _all_equal(left: Sequence[Node], right: Sequence[Node], equal: Equal) -> bool:
    return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
