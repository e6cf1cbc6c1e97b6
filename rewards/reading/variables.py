"""Unknowns: the one that an inequality is about, such as x in -2 < x ≤ 7 and x ∈ (-2, 7], and how to rename them."""

from __future__ import annotations

import re

from rewards.reading.parse import is_closed
from rewards.reading.phrases import FUNCTION_NAMES
from rewards.reading.shapes import Items, Node, Relation

_LETTERS = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]+")
_REAL = r"(?:[a-vxy]|\\theta)"
_DISTANCE = re.compile(
    rf"\|\s*(?:(?P<name>{_REAL})\s*(?:(?P<sign>[-+])\s*(?P<shift>[^|+-]+))?|(?P<first>[^|+-]+)-\s*(?P<last>{_REAL}))\s*\|"
)
"""The absolute value of an unknown, or its distance from a number; not z and w, which may be complex."""
_INEQUALITIES = {"<", ">", "<=", ">=", "!="}


def variable(node: Node) -> str | None:
    """The name of the unknown, or None if the ends are not constants or there are several unknowns."""
    if isinstance(node, Items):
        names = {variable(part) for part in node.elements}
        return names.pop() if len(names) == 1 else None
    if not isinstance(node, Relation):
        return None
    if node.operators == ("in",):
        return node.sides[0] if _is_name(node.sides[0]) else None
    if not all(operator in _INEQUALITIES for operator in node.operators):
        return None
    named = [about(side) for side in node.sides]
    names = {name[0] for name in named if name}
    others = [side for side, name in zip(node.sides, named, strict=True) if not name]
    if len(names) != 1 or len(others) != len(node.operators) or not all(_is_end(side) for side in others):
        return None
    return names.pop()


def _is_name(text: str) -> bool:
    bare = text.strip().strip("{}")
    return (len(bare) == 1 and bare.isalpha()) or bare in {r"\theta", r"\alpha", r"\beta", r"\lambda", r"\mu"}


def about(side: str) -> tuple[str, str] | None:
    """The unknown that a side consists of: ("x", "") for x; for a distance also its centre, ("x", "2") for |x - 2|.
    None for any other side."""
    if _is_name(side):
        return side, ""
    match = _DISTANCE.fullmatch(side.strip()) if "|" in side else None
    if match is None:
        return None
    name, centre = match.group("name") or match.group("last"), match.group("shift") or match.group("first") or "0"
    if not is_closed(centre):
        return None
    return name, f"-({centre})" if match.group("sign") == "+" else centre


def _is_end(text: str) -> bool:
    return text.replace(" ", "").lstrip("+-") == r"\infty" or is_closed(text)


def renamed(text: str, names: dict[str, str]) -> str | None:
    r"""Rename letters in a text, all at once; None if a new name is already in use.

    Adjacent letters are a product, 2ab, unless they are a function's name or in \text{…}.
    """
    taken = set(names.values()) - set(names)
    runs = _LETTERS.findall(text)
    if taken & {letter for run in runs for letter in ([run] if _is_word(run) else run)}:
        return None

    def exchanged(match: re.Match[str]) -> str:
        run = match.group()
        letters = [run] if _is_word(run) else run
        return "".join(f" {names[letter]} " if letter in names else letter for letter in letters)

    return _LETTERS.sub(exchanged, text)


def _is_word(run: str) -> bool:
    return run.startswith("\\") or run.lower() in FUNCTION_NAMES
