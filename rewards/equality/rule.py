"""The type of an equality rule, which decides a pair of kinds or returns None to leave it to the next, and how rules
compare several parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rewards.reading.shapes import Node

Equal = Callable[[Node, Node], bool]
"""`compare.equal`, which a rule calls on parts of its two answers; the reference comes first."""
Rule = Callable[[Node, Node, Equal], bool | None]
T = TypeVar("T")


def in_order(left: Sequence[T], right: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether the parts agree one by one."""
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def in_any_order(left: Sequence[T], right: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether the parts match one to one. Equality is close enough to transitive for a greedy matching."""
    if len(left) != len(right):
        return False
    remaining = list(right)
    for part in left:
        match = next((i for i, other in enumerate(remaining) if same(part, other)), None)
        if match is None:
            return False
        del remaining[match]
    return True
