"""Equations, inequalities and membership: when a relation states a value, and when two state the same.

A named value (x = 5, f(x) = 2x + 3, \\angle ABC = 40°) states its value. Any other equation or inequality
is not a value: x + 1 = 6 does not answer 5.
"""

from __future__ import annotations

import re

from rewards.equality import mathematics, regions
from rewards.equality.rule import Equal
from rewards.reading.parse import Unparsed, is_closed
from rewards.reading.read import read
from rewards.reading.shapes import Items, Node, Relation

_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|omega|phi|rho|tau|epsilon|Delta|ell|varphi))"
_SUBSCRIPT = r"(?:_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\w))?"
_SYMBOL = rf"{_LETTER}{_SUBSCRIPT}'*(?:\^\s*(?:\{{\s*-1\s*\}}|\{{?\\prime\}}?|\*))?{_SUBSCRIPT}"
_NAME = re.compile(
    rf"\s*(?:{_SYMBOL}(?:\s*\((?:[^()]|\([^()]*\))*\))?"  # x, a_1, f(x), P(A), f^{{-1}}(x)
    rf"|[-+]?\s*{_SYMBOL}(?:\s*[-+]?\s*{_SYMBOL}){{1,4}}"  # m + n, abc, AB
    rf"|{_SYMBOL}\s*/\s*{_SYMBOL}|\\frac\s*\{{\s*{_SYMBOL}\s*\}}\s*\{{\s*{_SYMBOL}\s*\}}"  # a / b
    rf"|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL}){{0,5}}\s*\)"  # (x, y)
    r"|\\(?:angle|triangle|overline|overrightarrow|vec|widehat|hat|bar|mathcal|measuredangle)\s*\{?[A-Za-z ]{1,6}\}?"
    rf"|m\s*\\angle\s*[A-Z]{{1,3}}|\|\s*{_SYMBOL}(?:\s*[-+]?\s*{_SYMBOL}){{0,2}}\s*\||\[[A-Z]{{3,6}}\]"
    rf"|\\(?:sin|cos|tan|cot|sec|csc|arg|det|gcd|lcm|max|min|log|ln)\s*(?:\\?angle)?\s*\(?{_SYMBOL}(?:\s*,\s*{_SYMBOL})*\)?"
    r"|\\text\s*\{[^{}]*\}|\\frac\s*\{\s*d[a-z]?\s*\}\s*\{\s*d[a-z]\s*\}|[A-Z][a-z]+(?: [A-Za-z]+){0,3}"
    r"|\\operatorname\s*\{[A-Za-z]+\}\s*\([^()]*\))\s*"
)  # fmt: skip
_POWER_SUM = re.compile(r"\s*[A-Za-z](?:\^\{?\d\}?)?(?:\s*\+?\s*[A-Za-z](?:\^\{?\d\}?)?){1,4}\s*")


def is_name(text: str) -> bool:
    """Whether the left side of an equation only names the value: no number takes part in it."""
    return _NAME.fullmatch(text) is not None or _is_power_sum(text)


def _is_power_sum(text: str) -> bool:
    """x^2 + y^2 or x^2 y asks for one value of several unknowns; x^2 alone is an equation to be solved."""
    match = _POWER_SUM.fullmatch(text)
    return match is not None and len(set(re.findall(r"[A-Za-z]", text))) >= 2


def relational(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Two relations as sets or as statements; a relation and something else by the value that it states."""
    if not isinstance(reference, Relation) and not isinstance(answer, Relation):
        return None
    region = regions.equal_if_regions(reference, answer)
    if region is not None:
        return region
    if isinstance(reference, Relation) and isinstance(answer, Relation):
        return _same_relation(reference, answer, equal)
    if isinstance(answer, Relation):
        value = stated_value(answer, equal)
        return value is not None and equal(reference, value)
    assert isinstance(reference, Relation)
    if isinstance(answer, Items) and is_assignment_list(Items((reference,))) and len(answer.elements) == 1:
        return equal(reference, answer.elements[0])
    value = stated_value(reference, equal)
    return value is not None and equal(value, answer)


def stated_value(relation: Relation, equal: Equal) -> Node | None:
    """x = 5 and 5 = x state 5; so does 2 + 3 = 5, whose sides agree; x + 1 = 6 states nothing."""
    if relation.operators == ("in",):
        return read(relation.sides[1]) if is_name(relation.sides[0]) else None
    if any(operator != "=" for operator in relation.operators):
        return None
    sides = list(relation.sides)
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides.reverse()
    last = read(sides[-1])
    middle = sides[:-1]
    if is_name(middle[0]):
        middle = middle[1:]
    elif not is_closed(middle[0]):
        return None
    for side in middle:  # a chain must not contradict itself
        if is_closed(side) and not equal(read(side), last):
            return None
    return last


def _same_relation(reference: Relation, answer: Relation, equal: Equal) -> bool:
    if len(reference.sides) > 2 or len(answer.sides) > 2:
        return _same_chain(reference, answer, equal)
    one, other = _directed(reference), _directed(answer)
    if one.operators != other.operators:
        return False
    for left, right in ((one, other), (_flipped(one), other)):
        if left is None:
            continue
        if _same_name(left.sides[0], right.sides[0]) and equal(read(left.sides[1]), read(right.sides[1])):
            return True
    if one.operators[0] not in {"=", "<", "<="} or _named_values(one, other):
        return False
    try:
        return mathematics.same_direction(
            (one.sides[0], one.sides[1]), (other.sides[0], other.sides[1]), signed=one.operators != ("=",)
        )
    except (Unparsed, TypeError, ArithmeticError):
        return False


def _named_values(one: Relation, other: Relation) -> bool:
    """x = 5 and y = 5 are different statements, and x = 5 and x = 6 as well: no equation to compare."""
    return all(
        relation.operators == ("=",) and is_name(relation.sides[0]) and is_closed(relation.sides[1])
        for relation in (one, other)
    )


def _directed(relation: Relation) -> Relation:
    """Write > as < with the sides exchanged."""
    if relation.operators[0] in {">", ">="}:
        return Relation((relation.sides[1], relation.sides[0]), (regions.MIRRORED[relation.operators[0]],))
    return relation


def _flipped(relation: Relation) -> Relation | None:
    """a = b as b = a; orders have no mirror image."""
    if relation.operators[0] not in {"=", "!=", "==", "~"}:
        return None
    return Relation((relation.sides[1], relation.sides[0]), relation.operators)


def _same_chain(reference: Relation, answer: Relation, equal: Equal) -> bool:
    """a < b < c by side, also read from right to left; x = … = 5 by its name and its last side."""
    if set(reference.operators) == {"="} == set(answer.operators):
        ends = [(relation.sides[0], relation.sides[-1]) for relation in (reference, answer)]
        return _same_name(ends[0][0], ends[1][0]) and equal(read(ends[0][1]), read(ends[1][1]))
    mirrored = tuple(regions.MIRRORED.get(operator, operator) for operator in reversed(answer.operators))
    backwards = Relation(tuple(reversed(answer.sides)), mirrored)
    return any(
        reference.operators == candidate.operators
        and all(equal(read(a), read(b)) for a, b in zip(reference.sides, candidate.sides, strict=True))
        for candidate in (answer, backwards)
    )


def _same_name(one: str, other: str) -> bool:
    strip = str.maketrans("", "", "{} ")
    return one.translate(strip) == other.translate(strip)


# -- lists of named values ---------------------------------------------------------------------------------


def is_assignment_list(node: Items) -> bool:
    """x = 1, y = 2: every element names its value, and at least two names differ."""
    return len(_names(node)) >= 2 or any(isinstance(part, Items) and _names(part) for part in node.elements)


def _names(node: Items) -> set[str]:
    found = set()
    for part in node.elements:
        if not (isinstance(part, Relation) and part.operators == ("=",) and is_name(part.sides[0])):
            return set()
        found.add(part.sides[0].replace(" ", ""))
    return found


def equal_assignments(reference: Items, answer: Items, equal: Equal) -> bool:
    """Solutions as groups of named values; a group written without names must keep the order of the names."""
    one, other = _groups(reference), _groups(answer)
    if one is None:
        return False
    if other is not None:
        if len(one) != len(other):
            return False
        remaining = list(other)
        for group in one:
            match = next((g for g in remaining if _same_group(group, g, equal)), None)
            if match is None:
                return False
            remaining.remove(match)
        return True
    if len(one) != 1 or len(answer.elements) != len(one[0]) or any(isinstance(e, Relation) for e in answer.elements):
        return False
    return all(equal(read(text), element) for (_, text), element in zip(one[0], answer.elements, strict=True))


Group = list[tuple[str, str]]


def _groups(node: Items) -> list[Group] | None:
    """p = 5, q = 2; p = 7, q = 2 → two groups. A name that comes again begins a new one."""
    groups: list[Group] = [[]]
    for part in node.elements:
        if isinstance(part, Items):
            inner = _groups(part)
            if inner is None:
                return None
            groups += [*inner, []]
            continue
        if not (isinstance(part, Relation) and part.operators == ("=",) and is_name(part.sides[0])):
            return None
        name = part.sides[0].replace(" ", "")
        if any(name == known for known, _ in groups[-1]):
            groups.append([])
        groups[-1].append((name, part.sides[1]))
    return [group for group in groups if group]


def _same_group(one: Group, other: Group, equal: Equal) -> bool:
    values = {_bare(name): text for name, text in other}
    return (
        len(one) == len(other)
        and {_bare(name) for name, _ in one} == set(values)
        and all(equal(read(text), read(values[_bare(name)])) for name, text in one)
    )


def _bare(name: str) -> str:
    return name.replace("{", "").replace("}", "")
