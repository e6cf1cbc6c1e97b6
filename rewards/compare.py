"""Two answers as read → equal or not. One small rule per pair of kinds; what no rule joins is not equal.

The first argument is always the reference. Rules are symmetric except where a reference may be fuller
than the answer has to be (a unit, a variable's name): those say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from rewards import mathematics, regions, relations
from rewards.clean import fingerprint
from rewards.numbers import Number, rounds_to, same_number
from rewards.phrases import fold
from rewards.shapes import (
    Approximation,
    Based,
    Bracketed,
    Choice,
    Combination,
    Conditioned,
    Domain,
    Exact,
    Expression,
    Items,
    Matrix,
    Moment,
    Node,
    Quantity,
    Ratio,
    Relation,
    Unusable,
    Words,
)
from rewards.units import conversion, is_known, same_things

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


def moments(reference: Node, answer: Node) -> bool | None:
    """2:30 p.m. is 14:30, and 2:30 where the answer leaves the half of the day out."""
    if not isinstance(reference, Moment) and not isinstance(answer, Moment):
        return None
    if isinstance(reference, Moment) and isinstance(answer, Moment):
        return reference.text == answer.text
    moment, other = (reference, answer) if isinstance(reference, Moment) else (answer, reference)
    assert isinstance(moment, Moment)
    if not isinstance(other, Ratio) or not other.clock or not moment.text[:1].isdigit() or ":" not in moment.text:
        return False
    parts = [int(part.number.value) for part in other.parts if isinstance(part, Exact)]
    clock = [int(part) for part in moment.text.split(":")]
    if len(parts) == 2:
        parts.append(0)
    return parts == clock or (
        moment is reference and parts[0] <= 12 and parts[1:] == clock[1:] and parts[0] % 12 == clock[0] % 12
    )


def ratios(reference: Node, answer: Node) -> bool | None:
    """2:3 is 4:6 and 2/3; 2:30 may be a time and equals only itself."""
    if isinstance(reference, Ratio) and isinstance(answer, Ratio):
        if len(reference.parts) != len(answer.parts):
            return False
        if reference.clock or answer.clock:
            return _all_equal(reference.parts, answer.parts)
        return _all_equal(reference.parts, answer.parts) or _proportional(reference, answer)
    for ratio, other in ((reference, answer), (answer, reference)):
        if isinstance(ratio, Ratio):
            values = [_value(part) for part in ratio.parts]
            quotient = _value(other)
            if ratio.clock or len(values) != 2 or None in values or quotient is None or not values[1]:
                return False
            return values[0] == quotient * values[1]  # type: ignore[operator]
    return None


def _proportional(one: Ratio, other: Ratio) -> bool:
    left = [_value(part) for part in one.parts]
    right = [_value(part) for part in other.parts]
    if None in left or None in right or not left[0] or not right[0]:
        return False
    return all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True))  # type: ignore[operator]


def bases(reference: Node, answer: Node) -> bool | None:
    """1011_2 is itself and, as a value, 11; never the bare digits 1011."""
    if isinstance(reference, Based) and isinstance(answer, Based):
        return int(reference.digits, reference.base) == int(answer.digits, answer.base)
    for based, other in ((reference, answer), (answer, reference)):
        if isinstance(based, Based):
            return isinstance(other, Exact) and other.number.value == int(based.digits, based.base)
    return None


def quantities(reference: Node, answer: Node) -> bool | None:
    """Units agree or convert; one side may leave its unit out. Percent signs: see `_percent`."""
    if not isinstance(reference, Quantity) and not isinstance(answer, Quantity):
        return None
    one, one_unit = (reference.value, reference.unit) if isinstance(reference, Quantity) else (reference, "")
    other, other_unit = (answer.value, answer.unit) if isinstance(answer, Quantity) else (answer, "")
    if isinstance(one, Items | Bracketed | Relation) or isinstance(other, Items | Bracketed | Relation):
        return equal(one, other) if one_unit == other_unit or not (one_unit and other_unit) else False
    if one_unit == other_unit:
        return equal(one, other)
    if "percent" in (one_unit, other_unit) and not (one_unit and other_unit):
        return _percent(one, other, percent_is_reference=one_unit == "percent")
    if not one_unit or not other_unit:
        return equal(one, other) or _degrees_in_radians(one, one_unit, other, other_unit)
    factor = conversion(one_unit, other_unit)
    if factor is not None:
        left, right = _value(one), _value(other)
        return left is not None and right is not None and left * factor == right
    if is_known(one_unit) or is_known(other_unit):
        return False
    return same_things(one_unit, other_unit) and equal(one, other)


def _percent(one: Node, other: Node, *, percent_is_reference: bool) -> bool:
    """50% is 1/2. 50% is also 50, where the sign was left out or added, but 0.5% is never 0.5."""
    percent, plain = (one, other) if percent_is_reference else (other, one)
    value, bare = _value(percent), _value(plain)
    if value is None or bare is None:
        return equal(one, other)
    return value / 100 == bare or (value == bare and abs(value) >= 1)


def _degrees_in_radians(one: Node, one_unit: str, other: Node, other_unit: str) -> bool:
    """45° is \\pi/4."""
    if (one_unit, other_unit) == ("degree", ""):
        degrees, radians = one, other
    elif (one_unit, other_unit) == ("", "degree"):
        degrees, radians = other, one
    else:
        return False
    if not isinstance(radians, Expression) or r"\pi" not in radians.latex:
        return False
    return isinstance(degrees, Exact) and equal(Expression(rf"\frac{{{degrees.number.value.numerator}\pi}}{{{180 * degrees.number.value.denominator}}}"), radians)  # fmt: skip


def relational(reference: Node, answer: Node) -> bool | None:
    """Equations, inequalities and membership: `rewards.relations` has the cases."""
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
        left, right = reference.elements, answer.elements
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
    members = _distinct(lone.elements)
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
            value = _value_of(text)
            if value is not None:
                return value == exact.number.value or (_is_long(exact.number) and rounds_to(value, exact.number))
    return _expressions(one, other)


def _expressions(one: str, other: str) -> bool:
    """Text that the parser refuses equals only the same text."""
    if fingerprint(one) == fingerprint(other):
        return True
    try:
        return mathematics.same_expression(one, other)
    except mathematics.Unparsed:
        return False


def _is_long(number: Number) -> bool:
    return number.digits >= 12


def _value_of(text: str) -> Fraction | None:
    try:
        return mathematics.value_of(text)
    except mathematics.Unparsed:
        return None


def _value(node: Node) -> Fraction | None:
    """The exact value of a number, or of a closed expression to the working precision."""
    if isinstance(node, Exact):
        return node.number.value
    return _value_of(node.latex) if isinstance(node, Expression) else None


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
