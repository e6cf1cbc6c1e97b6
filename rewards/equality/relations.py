"""Equations, inequalities and membership: when a relation states a value, and when two state the same.

A named value (x = 5, f(x) = 2x + 3, \\angle ABC = 40°) states its value. Any other equation or inequality
is not a value: x + 1 = 6 does not answer 5.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from rewards.equality import mathematics, regions
from rewards.equality.rule import Equal, in_any_order, in_order
from rewards.reading.names import INDEXED, bound_letters, names_one, names_value
from rewards.reading.parse import Unparsed, is_closed
from rewards.reading.read import read
from rewards.reading.shapes import Bracketed, Expression, Items, Node, Relation
from rewards.reading.variables import renamed

_MODULO = re.compile(
    r"(?P<number>.+?)\s*(?:\\bmod|\\pmod|\\text\s*\{\s*mod\s*\}|(?<![A-Za-z\\])mod)\s*\{?\s*(?P<modulus>\d+)\s*\}?"
)
_TURNED = {**regions.MIRRORED, **{operator: operator for operator in ("=", "!=", "==", "~")}}


def relational(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Compare two relations as sets or as statements, and a relation with anything else by the value that it states."""
    if not isinstance(reference, Relation) and not isinstance(answer, Relation):
        return None
    region = regions.equal_if_regions(reference, answer)
    if region is not None:
        return region
    if isinstance(reference, Relation) and isinstance(answer, Relation):
        return _same_relation(reference, answer, equal)
    if isinstance(answer, Relation):
        value = stated_value(answer, equal, names_value)
        return value is not None and not _are_ends(value, answer, reference) and equal(reference, value)
    assert isinstance(reference, Relation)
    value = stated_value(reference, equal, names_one)
    return value is not None and not _are_ends(value, reference, answer) and equal(value, answer)


def _are_ends(value: Node, relation: Relation, other: Node) -> bool:
    """Whether x ∈ (1, 3) meets a bare list, which could be the point (1, 3) but not an interval."""
    return isinstance(value, Bracketed) and isinstance(other, Items) and regions.region(relation) is not None


def congruences(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """x ≡ 3 (mod 7) is x ≡ 10 (mod 7), and 3 (mod 7)."""
    one, other = residue_class(reference), residue_class(answer)
    if one is None or other is None:
        return None
    if one[0] and other[0] and one[0] != other[0]:
        return False
    return one[2] == other[2] and (one[1] - other[1]) % one[2] == 0


def residue_class(node: Node) -> tuple[str, int, int] | None:
    """The left side of a congruence ("" if left out), the integer on its right side, and its modulus."""
    if isinstance(node, Relation) and node.operators == ("==",) and not is_closed(node.sides[0]):
        name, text = _bare(node.sides[0]), node.sides[1]
    elif isinstance(node, Expression) and "\\pmod" in node.latex:
        name, text = "", node.latex
    else:
        return None
    found = _modulo(text)
    return (name, *found) if found else None


def _modulo(text: str) -> tuple[int, int] | None:
    r"""The integer and the modulus of 17 \bmod 5 and 17 \pmod{5}."""
    match = _MODULO.fullmatch(text)
    if match is None or not is_closed(match.group("number")) or not int(match.group("modulus")):
        return None
    number = mathematics.value_of(match.group("number"))
    return (int(number), int(match.group("modulus"))) if number is not None and number.denominator == 1 else None


def stated_value(relation: Relation, equal: Equal, is_name: Callable[[str], bool]) -> Node | None:
    """The value that a relation states: 5 for x = 5 and 5 = x, and for 2 + 3 = 5, whose sides agree; none for
    x + 1 = 6."""
    if relation.operators == ("in",):
        return read(relation.sides[1]) if is_name(relation.sides[0]) else None
    if relation.operators == ("==",):
        return _residue(*relation.sides)
    if any(operator != "=" for operator in relation.operators):
        return None
    sides = list(relation.sides)
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides.reverse()
    last = read(sides[-1])
    middle = sides[:-1]
    if is_name(middle[0]):
        middle = middle[1:]
    elif not is_closed(middle[0]) and _remainder(middle[0]) is None:
        return None
    for side in middle:  # a chain must not contradict itself
        value = _remainder(side) or (read(side) if is_closed(side) else None)
        if value is not None and not equal(value, last):
            return None
    return last


def _remainder(text: str) -> Node | None:
    r"""17 \bmod 5 → 2; None for everything else."""
    found = _modulo(text)
    return read(str(found[0] % found[1])) if found else None


def _residue(left: str, right: str) -> Node | None:
    r"""-8 \equiv 2 \pmod{5} states 2, because it is a true congruence of two numbers."""
    found = _modulo(right)
    number = mathematics.value_of(left) if found and is_closed(left) else None
    return read(str(found[0])) if found and number is not None and (number - found[0]) % found[1] == 0 else None


def _same_relation(reference: Relation, answer: Relation, equal: Equal) -> bool:
    if len(reference.sides) > 2 or len(answer.sides) > 2:
        return _same_chain(reference, answer, equal)
    turned = [
        (one, other)
        for one, other in itertools.product((reference, _mirrored(reference)), (answer, _mirrored(answer)))
        if one.operators == other.operators
    ]
    for one, other in turned:
        if names_value(one.sides[1]) and not names_value(one.sides[0]):
            continue  # 5 = AB: as values, AB would be BA, and the angle ABC the angle ACB
        if _bare(one.sides[0]) == _bare(other.sides[0]) and equal(read(one.sides[1]), read(other.sides[1])):
            return True
        if one.operators == ("=",) and _same_function(one, other, equal):
            return True
    if not turned or reference.operators[0] not in {"=", *regions.MIRRORED}:
        return False
    if _named_values(reference, answer) or _other_points(reference, answer):
        return False
    one, other = turned[0]
    try:
        return mathematics.same_direction(
            (one.sides[0], one.sides[1]), (other.sides[0], other.sides[1]), signed=one.operators != ("=",)
        )
    except (Unparsed, *mathematics.SYMPY_ERRORS):
        return False


def _same_function(one: Relation, other: Relation, equal: Equal) -> bool:
    """f(x) = 2x + 1 and f(n) = 2n + 1 are the same: the argument of a function or sequence may have another name."""
    ours, theirs = bound_letters(one.sides[0]), bound_letters(other.sides[0])
    if ours is None or theirs is None or ours[0] != theirs[0] or len(ours[1]) != len(theirs[1]) or ours == theirs:
        return False
    body = renamed(other.sides[1], dict(zip(theirs[1], ours[1], strict=True)))
    return body is not None and equal(read(one.sides[1]), read(body))


def _named_values(one: Relation, other: Relation) -> bool:
    """Whether both only name a value: then there are no equations to compare, and x = 5 differs from y = 5 and from
    x = 6."""
    return all(
        relation.operators == ("=",)
        and any(names_one(name) and is_closed(value) for name, value in (relation.sides, relation.sides[::-1]))
        for relation in (one, other)
    )


def _other_points(one: Relation, other: Relation) -> bool:
    """Whether both name something by the same points in another order: as a product, BA would be AB."""
    named = [next(filter(names_one, relation.sides), "") for relation in (one, other)]
    points = [[letter for letter in name if letter.isupper()] for name in named]
    return points[0] != points[1] and sorted(points[0]) == sorted(points[1])


def _mirrored(relation: Relation) -> Relation:
    """a < b = c → c = b > a. What cannot be turned, as a ∈ b, stays as it is."""
    if not {*relation.operators} <= _TURNED.keys():
        return relation
    return Relation(relation.sides[::-1], tuple(_TURNED[operator] for operator in reversed(relation.operators)))


def _same_chain(reference: Relation, answer: Relation, equal: Equal) -> bool:
    """Compare a < b < c side by side, also from right to left, and x = … = 5 by its name and its last side."""
    if set(reference.operators) == {"="} == set(answer.operators):
        ends = [(relation.sides[0], relation.sides[-1]) for relation in (reference, answer)]
        return _bare(ends[0][0]) == _bare(ends[1][0]) and equal(read(ends[0][1]), read(ends[1][1]))
    return any(
        reference.operators == candidate.operators
        and in_order(reference.sides, candidate.sides, lambda one, other: equal(read(one), read(other)))
        for candidate in (answer, _mirrored(answer))
    )


# -- lists of named values ---------------------------------------------------------------------------------


def is_assignment_list(node: Items) -> bool:
    """Whether every element names its value and at least two names differ: x = 1, y = 2."""
    groups = None if leaves_open(node) else _groups(node)
    if groups is None:
        return False
    names = {name for group in groups for name, _ in group}
    return len(names) >= 2 or any(isinstance(part, Items) for part in node.elements)


def leaves_open(node: Items) -> bool:
    """Whether statements about different things are joined by "or", so that one of them may be false: x = 0 or y = 0.

    With a name again, x = 1 or x = 2 and x_1 = 1 or x_2 = 2, they are several values or solutions; y = x or x = 4 are
    several lines.
    """
    if node.joined_by != "or":
        return False
    stated = [_stated(part) for part in node.elements]
    names = {one[0] for one in stated if one is not None}
    letters = {letter for one in stated if one is not None for letter in one[1]}
    return len(names) == len(stated) and not names & letters


def _stated(part: Node) -> tuple[str, list[str]] | None:
    """The thing that a relation is about, without its number or arguments, and the letters on its other sides."""
    name = next((side for side in part.sides if names_one(side)), None) if isinstance(part, Relation) else None
    if name is None:
        return None
    assert isinstance(part, Relation)
    match, bound = INDEXED.fullmatch(_bare(name)), bound_letters(name)
    others = " ".join(side for side in part.sides if side != name)
    return match["letter"] if match else bound[0] if bound else _bare(name), _LETTERS.findall(others)


_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")


_ROOTS = {"x", "y", "z", "r", "t", "k", "m", "n", "p", "q", r"\lambda", r"\alpha", r"\beta", r"\theta"}
"""Letters of roots, whose numbering has no meaning; a_1 = 1, a_2 = 4 are the terms of a sequence."""


def indexed_roots(reference: Items, answer: Items) -> tuple[Sequence[Node], Sequence[Node]] | None:
    """The values of both, to be compared without order, if one is like x_1 = 2, x_2 = -3 and the other like 2, -3 or
    x = 2 or x = -3."""
    one, other = _numbered(reference), _numbered(answer)
    if one is None or other is None or one[1] == other[1] or {one[0], other[0]} - _ROOTS - {""}:
        return None
    if "" not in (one[0], other[0]) and one[0] != other[0]:
        return None
    return one[2], other[2]


def _numbered(node: Items) -> tuple[str, bool, list[Node]] | None:
    """The letter ("" for bare values), whether it is numbered, and the values; None if the names differ in more than
    the number."""
    if not any(isinstance(part, Relation) for part in node.elements):
        return "", False, list(node.elements)
    names, values = [], []
    for part in node.elements:
        if not isinstance(part, Relation) or part.operators != ("=",):
            return None
        names.append(_bare(part.sides[0]))
        values.append(read(part.sides[1]))
    if len(set(names)) == 1 and not INDEXED.fullmatch(names[0]):
        return names[0], False, values
    indexed = [INDEXED.fullmatch(name) for name in names]
    letters = {match.group("letter") if match else "" for match in indexed}
    if len(letters) != 1 or "" in letters or len(set(names)) != len(names):
        return None
    return letters.pop(), True, values


def equal_assignments(reference: Items, answer: Items, equal: Equal) -> bool:
    """Compare solutions as groups of named values. A group written without names must keep the order of the names."""
    one, other = _groups(reference), _groups(answer)
    if one is None:
        return False
    if other is not None:
        return in_any_order(one, other, lambda group, another: _same_group(group, another, equal))
    if len(one) > 1:
        tuples = _tuples(one)
        return tuples is not None and equal(tuples, answer)
    values = answer.elements if answer.joined_by != "or" else ()
    if len(one) != 1 or len(values) != len(one[0]) or any(isinstance(value, Relation) for value in values):
        return False
    return all(equal(read(text), value) for (_, text), value in zip(_in_order(one[0]), values, strict=True))


Group = list[tuple[str, str]]


def _tuples(groups: list[Group]) -> Items | None:
    """x = 1, y = 2 or x = 3, y = 4 → (1, 2), (3, 4), if all groups name the same unknowns in the same order."""
    if len({tuple(name for name, _ in group) for group in groups}) != 1 or len(groups[0]) < 2:
        return None
    return Items(tuple(Bracketed("(", ")", tuple(read(text) for _, text in _in_order(group))) for group in groups))


def coordinates(node: Items) -> Sequence[Node]:
    """The elements of a list that may be a point written without brackets: y = 2, x = 3 is (3, 2). None of "2 or 3" and
    x = 2, x = 3, which are two values of one."""
    groups = _groups(node)
    if node.joined_by == "or" or (groups and len(groups) > 1):
        return ()
    return [read(text) for _, text in _in_order(groups[0])] if groups else node.elements


def _in_order(group: Group) -> Group:
    """Put coordinates in their conventional order; keep other unknowns as written."""
    return sorted(group) if {name for name, _ in group} <= {"x", "y", "z"} else group


def _groups(node: Items) -> list[Group] | None:
    """p = 5, q = 2; p = 7, q = 2 → two groups. A repeated name begins a new group."""
    groups: list[Group] = [[]]
    for part in node.elements:
        if isinstance(part, Items):
            inner = _groups(part)
            if inner is None:
                return None
            groups += [*inner, []]
            continue
        if not (isinstance(part, Relation) and part.operators == ("=",) and names_value(part.sides[0])):
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
    return name.replace("{", "").replace("}", "").replace(" ", "")
