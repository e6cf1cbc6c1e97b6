"""Unknowns: the one that an inequality is about, x for -2 < x ≤ 7 and for x ∈ (-2, 7], and other names for them."""

from __future__ import annotations

import re

from rewards.reading.parse import is_closed
from rewards.reading.phrases import FUNCTION_NAMES
from rewards.reading.shapes import Items, Node, Relation

_LETTERS = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]+")
_INEQUALITIES = {"<", ">", "<=", ">=", "!="}


def variable(node: Node) -> str | None:
    """The name of the unknown, or None where the ends are no constants or several unknowns take part."""
    if isinstance(node, Items):
        names = {variable(part) for part in node.elements}
        return names.pop() if len(names) == 1 else None
    if not isinstance(node, Relation):
        return None
    if node.operators == ("in",):
        return node.sides[0] if _is_name(node.sides[0]) else None
    if not all(operator in _INEQUALITIES for operator in node.operators):
        return None
    names = {side for side in node.sides if _is_name(side)}
    others = [side for side in node.sides if not _is_name(side)]
    if len(names) != 1 or len(others) != len(node.operators) or not all(_is_end(side) for side in others):
        return None
    return names.pop()


def _is_name(text: str) -> bool:
    bare = text.strip().strip("{}")
    return (len(bare) == 1 and bare.isalpha()) or bare in {r"\theta", r"\alpha", r"\beta", r"\lambda", r"\mu"}


def _is_end(text: str) -> bool:
    return text.replace(" ", "").lstrip("+-") == r"\infty" or is_closed(text)


def renamed(text: str, names: dict[str, str]) -> str | None:
    r"""The text with letters exchanged, all at once; None where a new name is already taken.

    Letters in a row are a product, 2ab, unless they are a function's name or stand in \text{…}.
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
