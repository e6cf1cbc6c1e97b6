"""Two answers as read → equal or not. One small rule per pair of kinds; what no rule joins is not equal.

The first argument is always the reference. Rules are symmetric except where a reference may be fuller
than the answer has to be (a unit, a variable's name): those say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from rewards.equality import mathematics, measures, regions, relations
from rewards.reading.clean import fingerprint
from rewards.reading.numbers import Number, rounds_to, same_number
from rewards.reading.parse import Unparsed
from rewards.reading.phrases import fold
from rewards.reading.shapes import (
    Approximation,
    Bracketed,
    Choice,
    Combination,
    Conditioned,
    Domain,
    Exact,
    Expression,
    Items,
    Matrix,
    Node,
    Relation,
    Unusable,
    Words,
)

APPROXIMATION_TOLERANCE = Fraction(1, 50)
Rule = Callable[[Node, Node], bool | None]


def equal(reference: Node, answer: Node) -> bool:
    """Whether an answer states what the reference states. The first rule that applies decides."""
    if isinstance(reference, Unusable) or isinstance(answer, Unusable):
        return False
    for rule in _RULES:
        outcome = rule(reference, answer)
        if outcome is not None:
            return outcome
    return False


# Each rule returns None when it does not apply to the pair.


def conditioned(reference: Node, answer: Node) -> bool | None:
    """k\\pi, k ∈ Z: value and condition agree; a condition on one side only must be a mere domain."""
    if not isinstance(reference, Conditioned) and not isinstance(answer, Conditioned):
        return None
    if isinstance(reference, Conditioned) and isinstance(answer, Conditioned):
        if not relations.same_condition(reference.condition, answer.condition):
            return False
        return equal(reference.body, answer.body) or relations.equal_renamed(reference, answer, equal)
    lone = reference if isinstance(reference, Conditioned) else answer
    assert isinstance(lone, Conditioned)
    if not relations.is_mere_domain(lone.condition):
        return False
    bodies = [node.body if isinstance(node, Conditioned) else node for node in (reference, answer)]
    return equal(bodies[0], bodies[1])


def approximation(reference: Node, answer: Node) -> bool | None:
    """\\sqrt{2} ≈ 1.414: the exact side counts, and the rounded side must not belie it."""
    if isinstance(answer, Approximation):
        return relations.is_consistent(answer) and (
            equal(reference, answer.exact) or (_is_decimal(reference) and equal(reference, answer.rounded))
        )
    if isinstance(reference, Approximation):
        return equal(reference.exact, answer) or equal(reference.rounded, answer)
    return None


def numbers(reference: Node, answer: Node) -> bool | None:
    if isinstance(reference, Exact) and isinstance(answer, Exact):
        return same_number(reference.number, answer.number)
    return None


def choices(reference: Node, answer: Node) -> bool | None:
    """(C) is C; "C. 42" is C, and 42 where the reference is no letter."""
    if not isinstance(reference, Choice) and not isinstance(answer, Choice):
        return None
    one, other = _letter(reference), _letter(answer)
    if one is not None and other is not None:
        return one == other
    if isinstance(answer, Choice) and answer.content is not None:
        return equal(reference, answer.content)
    if isinstance(reference, Choice) and reference.content is not None:
        return equal(reference.content, answer)
    return False


def _letter(node: Node) -> str | None:
    if isinstance(node, Choice):
        return node.letter
    if isinstance(node, Expression) and len(node.latex) == 1 and node.latex.isalpha():
        return node.latex.upper()
    return None


def texts(reference: Node, answer: Node) -> bool | None:
    """Words agree when they fold to the same text; words never equal mathematics, but for a short product."""
    if isinstance(reference, Words) and isinstance(answer, Words):
        return reference.text == answer.text or reference.text.replace(" ", "") == answer.text.replace(" ", "")
    if isinstance(reference, Words) or isinstance(answer, Words):
        word, other = (reference, answer) if isinstance(reference, Words) else (answer, reference)
        assert isinstance(word, Words)
        return isinstance(other, Expression) and fold(other.latex) == word.text
    return None


def quantities(reference: Node, answer: Node) -> bool | None:
    return measures.quantities(reference, answer, equal)


def moments(reference: Node, answer: Node) -> bool | None:
    return measures.moments(reference, answer, equal)


def ratios(reference: Node, answer: Node) -> bool | None:
    return measures.ratios(reference, answer, equal)


def bases(reference: Node, answer: Node) -> bool | None:
    return measures.bases(reference, answer, equal)


def relational(reference: Node, answer: Node) -> bool | None:
    """Equations, inequalities and membership: `equality.relations` has the cases."""
    if isinstance(reference, Relation) or isinstance(answer, Relation):
        return relations.equal_relations(reference, answer, equal)
    return None


def items(reference: Node, answer: Node) -> bool | None:
    """Lists and sets have no order; a set in braces has no repetitions; a list of one is its element."""
    if not isinstance(reference, Items) and not isinstance(answer, Items):
        return None
    region = regions.equal_if_regions(reference, answer)
    if region is not None:
        return region
    if isinstance(reference, Items) and isinstance(answer, Items):
        if relations.is_assignment_list(reference):
            return relations.equal_assignments(reference, answer, equal)
        left: Sequence[Node] = reference.elements
        right: Sequence[Node] = answer.elements
        if "set" in (reference.kind, answer.kind):
            left, right = _distinct(left), _distinct(right)
        return _same_members(left, right)
    lone, other = (reference, answer) if isinstance(reference, Items) else (answer, reference)
    assert isinstance(lone, Items)
    if isinstance(other, Bracketed):
        if lone is reference and relations.is_assignment_list(lone):
            return relations.equal_assignments(lone, Items(other.elements), equal)
        # A point may lose its brackets, not gain them: 3, 4 for (3, 4).
        return (
            lone is answer
            and lone.kind == "list"
            and other.opening == "("
            and _all_equal(other.elements, lone.elements)
        )
    # 3/4 or 0.75 is one value said twice; 75, 75 is two values.
    said_twice = lone.kind == "set" or lone.joined_by == "or"
    members = _distinct(lone.elements) if said_twice else lone.elements
    if len(members) != 1:
        return False
    return equal(members[0], other) if lone is reference else equal(other, members[0])


def _distinct(elements: Sequence[Node]) -> list[Node]:
    kept: list[Node] = []
    for element in elements:
        if not any(equal(other, element) for other in kept):
            kept.append(element)
    return kept


def _same_members(left: Sequence[Node], right: Sequence[Node]) -> bool:
    """A one-to-one matching. Equality of answers is transitive enough for the first match to do."""
    if len(left) != len(right):
        return False
    remaining = list(right)
    for element in left:
        match = next((i for i, other in enumerate(remaining) if equal(element, other)), None)
        if match is None:
            return False
        del remaining[match]
    return True


def bracketed(reference: Node, answer: Node) -> bool | None:
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
        return _all_equal(reference.elements, answer.elements)
    for matrix, vector in ((reference, answer), (answer, reference)):
        if isinstance(matrix, Matrix) and isinstance(vector, Bracketed):
            column = [row[0] for row in matrix.rows if len(row) == 1]
            return len(column) == len(matrix.rows) and vector.opening != "[" and _all_equal(column, vector.elements)
    return None


def matrices(reference: Node, answer: Node) -> bool | None:
    """Matrices by entry; an unevaluated sum or product of matrices by math-verify."""
    if isinstance(reference, Matrix) and isinstance(answer, Matrix):
        shape = [len(row) for row in reference.rows]
        return shape == [len(row) for row in answer.rows] and all(
            _all_equal(one, other) for one, other in zip(reference.rows, answer.rows, strict=True)
        )
    for matrix, other in ((reference, answer), (answer, reference)):
        if isinstance(matrix, Matrix):
            return (
                isinstance(other, Expression)
                and r"\begin" in other.latex
                and _expressions(_matrix_latex(matrix), other.latex)
            )
    return None


def _matrix_latex(matrix: Matrix) -> str:
    rows = [" & ".join(_latex(cell) or "?" for cell in row) for row in matrix.rows]
    return r"\begin{pmatrix}" + r" \\ ".join(rows) + r"\end{pmatrix}"


def sets(reference: Node, answer: Node) -> bool | None:
    kinds = (Combination, Domain, Bracketed)
    if isinstance(reference, kinds) or isinstance(answer, kinds):
        if isinstance(reference, Domain) and isinstance(answer, Domain):
            return reference.name == answer.name
        region = regions.equal_if_regions(reference, answer)
        if region is not None:
            return region
        if isinstance(reference, Combination) and isinstance(answer, Combination):
            return reference.operator == answer.operator and _all_equal(reference.parts, answer.parts)
        return False
    return None


def expressions(reference: Node, answer: Node) -> bool | None:
    """What is left: numbers and expressions, compared by math-verify and by value."""
    one, other = _latex(reference), _latex(answer)
    if one is None or other is None:
        return False
    for exact, text in ((reference, other), (answer, one)):
        if isinstance(exact, Exact) and exact.number.digits:
            value = measures.value_of(text)
            if value is not None:
                return value == exact.number.value or (_is_long(exact.number) and rounds_to(value, exact.number))
    return _expressions(one, other)


def _expressions(one: str, other: str) -> bool:
    """Text that the parser refuses equals only the same text."""
    if fingerprint(one) == fingerprint(other):
        return True
    try:
        return mathematics.same_expression(one, other)
    except Unparsed:
        return False


def _is_long(number: Number) -> bool:
    return number.digits >= 12


def _latex(node: Node) -> str | None:
    if isinstance(node, Expression):
        return node.latex
    if isinstance(node, Exact):
        value = node.number.value
        return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return None


def _is_decimal(node: Node) -> bool:
    return isinstance(node, Exact) and node.number.digits > 0


def _all_equal(left: Sequence[Node], right: Sequence[Node]) -> bool:
    return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))


_RULES: tuple[Rule, ...] = (
    conditioned,
    approximation,
    numbers,
    choices,
    relational,
    items,
    quantities,
    moments,
    texts,
    ratios,
    bases,
    bracketed,
    matrices,
    sets,
    expressions,
)
