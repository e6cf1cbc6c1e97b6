r"""Text that file formats or web pages have damaged → the text as it was written.

A string escape consumes the backslash of a command ("\f" of \frac, "\t" of \times), JSON inside CSV doubles every
backslash, and a web page writes < as &lt; and powers as <sup>2</sup>. Each leaves traces that no intact answer has.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

from datafiles.cells import unescaped

MAX_ROUNDS = 3
"""How many layers of escaping are undone at most."""

_COMMAND = (
    r"(?:[dtc]?frac|sqrt|left|right|begin|end|text(?:bf|rm|it)?|math(?:rm|bf|bb|cal|it)|operatorname|mbox|boxed"
    r"|pi|times|cdot|div|pm|mp|infty|leq?|geq?|neq?|lt|gt|in|cup|cap|setminus|emptyset|varnothing|mid|quad|qquad"
    r"|[dt]?binom|choose|over(?:line)?|log|ln|sin|cos|tan|cot|sec|csc|arc(?:sin|cos|tan)|alpha|beta|gamma|theta|lambda"
    r"|omega|phi|angle|circ|degree|[pb]?mod|approx|equiv|ldots|cdots|dots|to|sum|int|prod|lim)(?![A-Za-z])"
)
_BACKSLASHES = re.compile(r"\\+")
_DOUBLED = re.compile(rf"\\\\(?:{_COMMAND}|[%$])")
_AFTER_BACKSLASH = re.compile(rf"{_COMMAND}|[%$&#_{{}}(),;:!|\[\]]")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,31}\d{0,2});")
_RAISED = re.compile(r"<(sup|sub)>([^<>]{1,40})</\1>", re.IGNORECASE)


def restored(text: str) -> str:
    """Undo the damage to a text."""
    text = unescaped(text)
    for _ in range(MAX_ROUNDS):
        if not _DOUBLED.search(text) or any(len(run) % 2 for run in _BACKSLASHES.findall(text)):
            break
        text = _BACKSLASHES.sub(_halved, text)
    if "&" in text and ";" in text:
        for _ in range(MAX_ROUNDS):
            text = _ENTITY.sub(_character, text)
    if "</" in text:
        text = _RAISED.sub(lambda m: ("^{" if m.group(1).lower() == "sup" else "_{") + m.group(2) + "}", text)
    return text


def _character(match: re.Match[str]) -> str:
    entity = match.group()
    return html.unescape(entity) if entity[1] == "#" else html5.get(entity[1:], entity)


def _halved(match: re.Match[str]) -> str:
    r"""Halve the backslashes. Two that no command follows end a row and were not doubled: `\\begin{matrix} 1 \\ 2`."""
    run = match.group()
    if len(run) > 2 or _AFTER_BACKSLASH.match(match.string, match.end()):
        return run[: len(run) // 2]
    return run
