r"""Text → the boxes in it: `\boxed{…}`, found in one pass regardless of nesting and size.

A box counts if it is complete, visible and outermost. `\fbox`, `\Boxed` and a box whose `\b` was consumed by
a string escape (`oxed{…}`) are boxes too; `\beginboxed{…}` and `\boxed 5` are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<box>\\(?:boxed|Boxed|fbox)[ \t]*\{|(?:\x08|(?<![A-Za-z\\]))oxed\{)|(?P<escaped>\\[\\{}])|(?P<brace>[{}])"
)
_HIDDEN = tuple(
    (mark, re.compile(pattern, re.DOTALL))
    for mark, pattern in (
        ("<!--", r"<!--.*?(?:-->|\Z)"),
        (r"\iffalse", r"\\iffalse\b.*?(?:\\fi\b|\Z)"),
        (r"\begin{comment}", r"\\begin\{comment\}.*?(?:\\end\{comment\}|\Z)"),
        (
            "style",
            r"<(?P<tag>\w+)[^<>\n]{0,200}(?:display:\s*none|visibility:\s*hidden)[^<>\n]{0,200}>"
            r".*?(?:</(?P=tag)>|\Z)",
        ),
        # A LaTeX comment: a percent sign that follows neither a backslash nor a number, and is not all of a \text{%}.
        ("%", r"(?<![\\\d}])(?<!\d )%(?!\})[^\n]*"),
        (r"\verb", r"\\verb\*?([|!+@])[^\n]{0,200}?\1"),
    )
)  # fmt: skip
"""Patterns of text that is not rendered. The mark is a quick test for whether the pattern can match at all."""
_HIDING_COMMAND = re.compile(
    r"\\(?:[hv]?phantom|smash|llap|rlap|[xb]?cancel|sout|color\{white\}|textcolor\{white\})\s*\{?"
    r"|\\(?:re)?newcommand\*?\{?\\\w+\}?|\\def\s*\\\w+|~~|<(?:s|del|strike)>"
)
_HIDING_WINDOW = 40
MAX_BOXES = 100


@dataclass(frozen=True, slots=True)
class Box:
    """A complete box: its start and end in the text, its content, and whether it contains boxes."""

    start: int
    end: int
    content: str
    nested: bool


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of a text, finished and unfinished."""

    complete: tuple[Box, ...]
    """Visible outermost boxes in order."""
    unfinished: tuple[int, ...]
    """Positions at which the content of boxes that never close begins."""


def find_boxes(text: str) -> Boxes:
    if "oxed" not in text and "\\fbox" not in text:
        return Boxes((), ())
    visible = _blank_hidden(text)
    return _scan(visible, text)


def _blank_hidden(text: str) -> str:
    """Overwrite text that is not rendered with spaces, so that positions stay the same."""
    for mark, pattern in _HIDDEN:
        if mark in text:
            text = pattern.sub(lambda match: " " * len(match.group()), text)
    return text


def _scan(visible: str, text: str) -> Boxes:
    """Match braces with a stack, so that 100,000 unclosed ones cost one pass."""
    stack: list[tuple[int, int]] = []  # (start of the box or -1 for a plain brace, start of its content)
    found: list[tuple[int, int, int]] = []
    for token in _TOKEN.finditer(visible):
        if token.lastgroup == "box":
            stack.append((token.start(), token.end()))
        elif token.lastgroup == "brace":
            if token.group() == "{":
                stack.append((-1, token.end()))
            elif stack:
                start, inside = stack.pop()
                if start >= 0:
                    found.append((start, inside, token.end()))
    return Boxes(
        complete=tuple(_outermost(found, text)),
        unfinished=tuple(inside for start, inside in stack if start >= 0),
    )


def _outermost(found: list[tuple[int, int, int]], text: str) -> list[Box]:
    """The outermost boxes, at most the last `MAX_BOXES`. Only their content is copied."""
    outer: list[tuple[int, int, int, bool]] = []
    for start, inside, end in found:  # ordered by end: inner boxes come before outer ones
        nested = False
        while outer and outer[-1][0] > start:
            outer.pop()
            nested = True
        outer.append((start, inside, end, nested))
    return [
        Box(start, end, text[inside : end - 1], nested)
        for start, inside, end, nested in outer[-MAX_BOXES:]
        if not _is_hidden(text, start)
    ]


def _is_hidden(text: str, start: int) -> bool:
    r"""Whether a command right before the box hides it, as in `\phantom{\boxed{5}}`."""
    before = text[max(0, start - _HIDING_WINDOW) : start].rstrip("{$ ")
    return any(match.end() >= len(before) for match in _HIDING_COMMAND.finditer(before))
