"""The type of an equality rule: it decides a pair of kinds, or returns None to leave the pair to the next rule."""

from __future__ import annotations

from collections.abc import Callable

from rewards.reading.shapes import Node

Equal = Callable[[Node, Node], bool]
"""`compare.equal`, which a rule calls on parts of its two answers; the reference comes first."""
Rule = Callable[[Node, Node, Equal], bool | None]
