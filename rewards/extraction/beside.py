r"""A box → the answer in it, with the sign before it and the unit after it.

`x = -\left(\boxed{5}\right)` means -5, and `\boxed{5}` cm is not 5 m. Nothing else around a box is part of the answer:
solutions in MATH and AIME box only the part that the problem asks for, so `\sqrt{\boxed{448}}`, `\boxed{19}x^3` and
`355\boxed{680}` mean 448, 19 and 680.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rewards.extraction.boxes import Box
from rewards.reading.units import is_known, read_unit

REACH = 240

_SPACE = r"\\[,;:! ]"
_BRACKETS = r"(?:(?:\\left\s*)?[({]\s*)*"
_SIGN = r"(?P<sign>[-−±]|\+-|\\[pm][pm](?![A-Za-z]))"
_OPENERS = r"(?P<openers>(?:\\left|\\math[a-z]+(?=\s*\{)|[({])*)"
_SIGN_BEFORE = (
    re.compile(
        r"(?:[=≈⇒→]|\\(?:approx|equiv|implies|(?:Long)?[rR]ightarrow|q?quad)|\\[(\[])\s*"
        rf"{_BRACKETS}{_SIGN}(?:\s|{_SPACE})*{_OPENERS}\s*(?:\\\$\s*)?\{{?$"
    ),
    re.compile(
        r"(?:(?:^|\n)[ \t]*|\$|\*\*|(?<![\\A-Za-z])[A-Za-z]{2,}\s+|[.:,;]\s+)"
        rf"{_BRACKETS}{_SIGN}(?:{_SPACE})*{_OPENERS}(?:\\\$)?\{{?$"
    ),
)
"""A sign before a box. In `x - \\boxed{5}` it joins two terms, and in a line `- \\boxed{5}` it may be a list bullet."""
_SIMPLE = re.compile(r"(?:[\w.\\{}]|,(?=\d{3}))+")

_NUMBER = re.compile(r"\s*[-+]?(?:[\d.,]|\\[dt]?frac\{?\d+\}?\{?\d+\}?)+\s*")
_PERCENT = re.compile(rf"(?:{_SPACE})*\\?%")
_WORDS_AFTER = re.compile(
    rf"(?:\$\$?|\\[)\]]|\*\*){{0,2}}(?:\s|{_SPACE}){{0,2}}(?P<text>\\(?:text|mathrm|mbox)\s*\{{\s*)?"
    r"(?P<words>(?:[A-Za-z]+|/)(?:[ /-][A-Za-z]{2,}){0,3})(?:\}?\s*\^\{?(?P<power>[23]))?"
)
_NO_UNITS = frozenset({"in", "second", "gal", "mo", "min", "deg", "buck", "yard", "pound", "pounds"})
"""Names of units that are also everyday words, or names of two units."""


def with_sign_and_unit(text: str, box: Box) -> Box:
    """The box with the sign and unit that the text around it gives it; a box of boxes is returned unchanged."""
    return box if box.nested else _with_sign(text, _with_unit(text, box))


def _with_sign(text: str, box: Box) -> Box:
    begin = max(0, box.start - REACH)
    match = next((found for one in _SIGN_BEFORE if (found := one.search(text[begin : box.start]))), None)
    if match is None:
        return box
    value = box.content if _SIMPLE.fullmatch(box.content.strip()) else f"({box.content})"
    opened = len(re.findall("[({]", match["openers"]))
    closed = re.compile(rf"(?:(?:\s|{_SPACE})*(?:\\right\s*)?[)}}]){{0,{opened}}}").match(text, box.end)
    end = closed.end() if closed else box.end
    return replace(box, start=begin + match.start("sign"), end=end, content=match["sign"] + value)


def _with_unit(text: str, box: Box) -> Box:
    if not _NUMBER.fullmatch(box.content):
        return box
    if _PERCENT.match(text, box.end):
        return replace(box, content=rf"{box.content}\%")
    match = _WORDS_AFTER.match(text, box.end)
    if match is None:
        return box
    words = match["words"].split(" ")
    for count in range(len(words), 0, -1):
        unit = " ".join(words[:count])
        if not {words[0].lower(), words[count - 1].lower()} & _NO_UNITS and _is_unit(unit, match["text"] is not None):
            power = f"^{match['power']}" if match["power"] and count == len(words) else ""
            return replace(box, content=rf"{box.content}\text{{ {unit}}}{power}")
    return box


def _is_unit(words: str, in_text: bool) -> bool:
    r"""Whether the words are certainly a unit: outside `\text`, m may be a variable."""
    return (in_text or len(words) > 1) and is_known(read_unit(words) or "")
