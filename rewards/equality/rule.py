"""What a rule of equality is: it decides a pair of kinds, or leaves the pair to the next rule by returning None."""

from __future__ import annotations

from collections.abc import Callable

from rewards.reading.shapes import Node

Equal = Callable[[Node, Node], bool]
"""`compare.equal`, which a rule asks about the parts of its two answers; the reference comes first."""
Rule = Callable[[Node, Node, Equal], bool | None]
