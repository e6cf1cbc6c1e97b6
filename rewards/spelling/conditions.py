r"""A value with a side condition → both, as text: k\pi, k \in \mathbb{Z}; {2k | k \in \mathbb{Z}}; "for any C"."""

from __future__ import annotations

import re

from rewards.spelling import split

_CONDITION = re.compile(
    r"\\in(?![a-z])|\\mathbb|\\text\s*\{[^{}]*(?:where|for|integer|real|constant|some|any|if)|^\s*(?:where|for|with|if)\b"
)
_MEMBER = r"(?P<condition>(?P<letter>[A-Za-z])(?:,\s*[A-Za-z])*\s*\\in\s*\\mathbb\s*\{[RZNQC]\})"
_FROM_THE_FIRST = r"[i-n]\s*(?:\\ge\s*[01]|>\s*0)"
"""n ≥ 1, which says where a sequence begins."""
_COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])")
_IN_BRACKETS = re.compile(
    rf"(?P<body>.+?)\s*\(\s*(?:\\text\s*\{{\s*for\s*\}})?\s*(?:{_MEMBER}|(?P<begin>{_FROM_THE_FIRST}))\s*\)", re.DOTALL
)
_FOR_ALL = re.compile(rf"(?P<body>[^|:]+?)\s*(?:\\mid|[|:])\s*{_MEMBER}", re.DOTALL)
_WHERE = re.compile(
    r"\\text\s*\{\s*,?\s*(?:where|for|with|if)\b|\\forall(?![a-z])|(?<![A-Za-z])(?:where|for (?:some|any|all|every))\b"
)


def value_and_condition(text: str) -> tuple[str, str] | None:
    """k\\pi, k ∈ Z and k\\pi (k ∈ Z) and "k\\pi for any integer k" → the value and the condition."""
    pieces = split.split_at(text, {",", ";"})
    for position in range(1, len(pieces)):
        rest = ", ".join(pieces[position:])
        body = ", ".join(pieces[:position])
        if _CONDITION.search(rest) and not _CONDITION.search(body):
            return body, rest
        if re.fullmatch(_FROM_THE_FIRST, rest) and not _INEQUALITY.search(body):
            # In m = 5, n ≥ 1 and in 1, 2, n ≥ 1 it is a statement of its own.
            return (body, rest) if rest[0] in _COMMAND.sub(" ", body) else None
    bracketed = _IN_BRACKETS.fullmatch(text)
    if bracketed:
        return bracketed.group("body"), bracketed.group("condition") or bracketed.group("begin")
    match = _WHERE.search(text)
    if match and match.start() > 0 and not _is_inside_cases(text[: match.start()]):
        return text[: match.start()].rstrip(" ,"), text[match.start() :]
    return None


def for_all(inside: str) -> tuple[str, str] | None:
    r"""Split the inside of the braces of {2k | k \in \mathbb{Z}}; None for {x | x \in \mathbb{R}}, which only names a
    set."""
    match = _FOR_ALL.fullmatch(inside)
    if match is None or match.group("body").strip() == match.group("letter"):
        return None
    return match.group("body"), match.group("condition")


def _is_inside_cases(before: str) -> bool:
    return before.count(r"\begin") > before.count(r"\end")
