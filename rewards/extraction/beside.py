r"""A box → the answer in it, with the sign before it and the unit after it.

`x = -\left(\boxed{5}\right)` says -5, and `\boxed{5}` cm is not 5 m. Whatever else surrounds a box is not part of the
answer. Solutions of MATH and AIME box the part that was asked for: `\sqrt{\boxed{448}}`, `\boxed{19}x^3` and
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
"""In `x - \\boxed{5}` the sign stands between two terms, and in a line `- \\boxed{5}` it may mark an item of a list."""
_SIMPLE = re.compile(r"(?:[\w.\\{}]|,(?=\d{3}))+")

_NUMBER = re.compile(r"\s*[-+]?(?:[\d.,]|\\[dt]?frac\{?\d+\}?\{?\d+\}?)+\s*")
_PERCENT = re.compile(rf"(?:{_SPACE})*\\?%")
_UNIT_AFTER = re.compile(
    rf"(?:\$\$?|\\[)\]]|\*\*){{0,2}}(?:[\s~]|{_SPACE}){{0,2}}(?P<text>\\(?:text|mathrm|mbox)\s*\{{[\s~]*)?"
    r"(?P<unit>(?:(?:square|cubic|sq|cu) )?[A-Za-z]+)(?:\}?\s*\^\{?(?P<power>[23])\}?)?\}?"
    r"(?=\s*(?:[.,;:!?()\]*]|\$(?!\s*\^)|\\[)\]]|\Z)|[ \t]*\n)"
)
"""A unit with which the formula or the part of the sentence ends: 60 km goes on in "60 km/h" and "60 km an hour"."""
_NO_UNITS = frozenset({"in", "second", "gal", "mo", "min", "deg", "buck", "yard", "pound", "pounds"})
"""Units that are everyday words as well, or of two kinds."""


def with_sign_and_unit(text: str, box: Box) -> Box:
    """The box as its text means it; a box of boxes stays as it is."""
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
    match = _UNIT_AFTER.match(text, box.end)
    if match is None or not _is_unit(match["unit"], match["text"] is not None):
        return box
    power = f"^{match['power']}" if match["power"] else ""
    return replace(box, content=rf"{box.content}\text{{ {match['unit']}}}{power}")


def _is_unit(unit: str, in_text: bool) -> bool:
    r"""Whether it is a unit beyond doubt: outside of `\text`, m may be an unknown."""
    return (in_text or len(unit) > 1) and unit.lower() not in _NO_UNITS and is_known(read_unit(unit) or "")
