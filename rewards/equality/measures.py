"""Measured values: quantities with units, percentages, ratios, clock times, numerals in other bases."""

from __future__ import annotations

import re

from rewards.equality.rule import Equal, in_order
from rewards.equality.values import latex_of, same_expressions, value_of
from rewards.reading.parse import is_closed
from rewards.reading.read import read
from rewards.reading.shapes import Based, Exact, Expression, Moment, Node, Quantity, Ratio
from rewards.reading.units import conversion, is_known, read_unit, same_things


def moments(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """2:30 p.m. is 14:30, and 2:30 if one side leaves out a.m. or p.m."""
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
    return parts == clock or (parts[0] <= 12 and parts[1:] == clock[1:] and parts[0] % 12 == clock[0] % 12)


def ratios(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """2:3 is 4:6, 10:15 and 2/3; a reference 2:30 may be a time and equals only itself, and 0:9 is no value."""
    if isinstance(reference, Ratio) and isinstance(answer, Ratio):
        if in_order(reference.parts, answer.parts, equal):
            return True
        return not reference.clock and len(reference.parts) == len(answer.parts) and _proportional(reference, answer)
    for ratio, other in ((reference, answer), (answer, reference)):
        if isinstance(ratio, Ratio):
            parts, quotient = [latex_of(part) for part in ratio.parts], latex_of(other)
            if ratio.clock or len(parts) != 2 or None in parts or quotient is None:
                return False
            if 0 in [value_of(part) for part in ratio.parts]:
                return False
            return same_expressions(rf"\frac{{{parts[0]}}}{{{parts[1]}}}", quotient)
    return None


def _proportional(one: Ratio, other: Ratio) -> bool:
    """Whether the cross products agree: 1:√3 is √3:3. A zero part is proportional to nothing: 7:0 is not 8:0."""
    left, right = ([latex_of(part) for part in ratio.parts] for ratio in (one, other))
    if None in left or None in right or any(value_of(part) == 0 for ratio in (one, other) for part in ratio.parts):
        return False
    return all(
        same_expressions(rf"({a}) \cdot ({right[0]})", rf"({b}) \cdot ({left[0]})")
        for a, b in zip(left[1:], right[1:], strict=True)
    )


def bases(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """1011_2 is itself and, as a value, 11; never the bare digits 1011."""
    if isinstance(reference, Based) and isinstance(answer, Based):
        return int(reference.digits, reference.base) == int(answer.digits, answer.base)
    for based, other in ((reference, answer), (answer, reference)):
        if isinstance(based, Based):
            return isinstance(other, Exact) and other.number.value == int(based.digits, based.base)
    return None


def quantities(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Units must agree or convert; one side may leave its unit out. For percent signs see `_percent`."""
    if not isinstance(reference, Quantity) and not isinstance(answer, Quantity):
        return None
    reference, answer = _with_short_unit(reference, answer), _with_short_unit(answer, reference)
    one, one_unit = (reference.value, reference.unit) if isinstance(reference, Quantity) else (reference, "")
    other, other_unit = (answer.value, answer.unit) if isinstance(answer, Quantity) else (answer, "")
    if one_unit == other_unit:
        return equal(one, other)
    if "percent" in (one_unit, other_unit) and not (one_unit and other_unit):
        return _percent(one, other, equal, percent_is_reference=one_unit == "percent")
    if not one_unit or not other_unit:
        return equal(one, other) or (_in_pi(one, other) and _same_angle((one, one_unit), (other, other_unit), equal))
    if {one_unit, other_unit} == {"pound", "pound sterling"}:
        return equal(one, other)
    if {one_unit, other_unit} == {"degree", "radian"}:
        return _same_angle((one, one_unit), (other, other_unit), equal)
    factor = conversion(one_unit, other_unit)
    if factor is not None:
        left, right = value_of(one), value_of(other)
        return left is not None and right is not None and left * factor == right
    if is_known(one_unit) or is_known(other_unit):
        return False
    return same_things(one_unit, other_unit) and equal(one, other)


_SHORT_UNIT = re.compile(
    r"(?P<value>.*(?:[\d})]|\\pi))\s*(?P<unit>[A-Za-z]{1,2}(?:\^\{?\d\}?)?(?:\s*/\s*[A-Za-z]{1,2}(?:\^\{?\d\}?)?)?"
    r"|[kM]?\\Omega)",
    re.DOTALL,
)


def _with_short_unit(node: Node, other: Node) -> Node:
    """5m, 3000 g and 12 N: letters after a number are a unit if the other side has a unit of the same dimension."""
    if not isinstance(node, Expression) or not isinstance(other, Quantity):
        return node
    match = _SHORT_UNIT.fullmatch(node.latex)
    unit = read_unit(match.group("unit")) if match else None
    if match is None or unit is None or not (unit == other.unit or conversion(unit, other.unit)):
        return node
    value = match.group("value")
    return Quantity(read(value), unit) if is_closed(value) else node


def _percent(one: Node, other: Node, equal: Equal, *, percent_is_reference: bool) -> bool:
    """50% is 1/2. 50% is also 50, if one side leaves the sign out, but 0.5% is never 0.5."""
    percent, plain = (one, other) if percent_is_reference else (other, one)
    value, bare = value_of(percent), value_of(plain)
    if value is None or bare is None:
        return equal(one, other)
    return value / 100 == bare or (value == bare and abs(value) >= 1)


def _in_pi(one: Node, other: Node) -> bool:
    r"""Whether a number without a unit is a multiple of \pi, and so an angle in radians."""
    return any(isinstance(node, Expression) and r"\pi" in node.latex for node in (one, other))


def _same_angle(left: tuple[Node, str], right: tuple[Node, str], equal: Equal) -> bool:
    """45° is \\pi/4."""
    if "degree" not in (left[1], right[1]):
        return False
    degrees, radians = (left[0], right[0]) if left[1] == "degree" else (right[0], left[0])
    angle = latex_of(degrees)
    return angle is not None and equal(Expression(rf"({angle}) \cdot \frac{{\pi}}{{180}}"), radians)
