"""Piecewise functions → equal or not: the same values under the same conditions, in any order."""

from __future__ import annotations

from rewards.equality import mathematics, regions
from rewards.equality.regions import Region
from rewards.equality.rule import Equal, in_any_order
from rewards.reading.parse import Unparsed
from rewards.reading.phrases import fold
from rewards.reading.read import read
from rewards.reading.shapes import Node, Pieces
from rewards.reading.variables import variable
from rewards.spelling.clean import fingerprint


def pieces(reference: Node, answer: Node, equal: Equal) -> bool | None:
    if not isinstance(reference, Pieces) or not isinstance(answer, Pieces):
        return None
    return in_any_order(
        list(zip(reference.rows, _where(reference), strict=True)),
        list(zip(answer.rows, _where(answer), strict=True)),
        lambda one, other: (
            _same_condition((one[0][1], one[1]), (other[0][1], other[1]), equal) and equal(one[0][0], other[0][0])
        ),
    )


Where = tuple[str, Region] | None
"""A condition's unknown and the region of its values; None if the condition is not about one unknown."""


def _where(node: Pieces) -> list[Where]:
    """The region of each piece; "otherwise" is what the others leave, provided that their regions are known."""
    found = [_region(condition) if condition else None for _, condition in node.rows]
    known = [where for where in found if where is not None]
    others = [condition for _, condition in node.rows].count("")
    if others == 1 and len(known) == len(found) - 1 and len({name for name, _ in known}) == 1:
        taken = mathematics.combine("cup", [region for _, region in known])
        rest = mathematics.combine("setminus", [mathematics.domain("R"), taken])
        return [where or (known[0][0], rest) for where in found]
    return found


def _region(condition: str) -> Where:
    node = read(condition)
    name = variable(node)
    try:
        region = regions.region(node) if name else None
    except (Unparsed, TypeError, NotImplementedError, ValueError):
        return None
    return (name, region) if name and region is not None else None


def _same_condition(one: tuple[str, Where], other: tuple[str, Where], equal: Equal) -> bool:
    if one[1] is not None and other[1] is not None:
        return one[1][0] == other[1][0] and mathematics.same_set(one[1][1], other[1][1])
    if one[1] is not None or other[1] is not None or not (one[0] and other[0]):
        return one[0] == other[0]
    return _words(one[0]) == _words(other[0]) or equal(read(one[0]), read(other[0]))


def _words(condition: str) -> str:
    """A condition as normalized words: "n is even" and "n even" are the same."""
    return fingerprint(" ".join(word for word in fold(condition).split() if word not in {"is", "are"}))
