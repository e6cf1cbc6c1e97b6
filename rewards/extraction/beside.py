r"""A box and the text around it → its sign, which makes it no answer, and its unit, which belongs to the answer.

`x = -\left(\boxed{5}\right)` does not say 5, and -5 is not in the box; `\boxed{5}` cm is not 5 m. Whatever else
surrounds a box is not part of the answer. Solutions of MATH and AIME box the part that was asked for:
`\sqrt{\boxed{448}}`, `\boxed{19}x^3` and `355\boxed{680}` mean 448, 19 and 680.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rewards.extraction.boxes import Box
from rewards.reading.units import is_known, read_unit

REACH = 60

_SPACE = r"\\[,;:! ]"
_OPENERS = r"(?:(?:\\left\s*)?[({]\s*)*"
_SIGN = r"(?:[-−±]|\+-|\\[pm][pm](?![A-Za-z]))"
_WRAPPERS = r"(?:\\left|\\math[a-z]+(?=\s*\{)|[({])*"
_SIGN_BEFORE = re.compile(
    r"(?:[=≈⇒→]|\\(?:approx|equiv|implies|(?:Long)?[rR]ightarrow|q?quad)|\\[(\[])\s*"
    rf"{_OPENERS}{_SIGN}(?:\s|{_SPACE})*{_WRAPPERS}\s*(?:\\\$\s*)?\{{?$"
    r"|(?:(?:^|\n)[ \t]*|\$|\*\*|(?<![\\A-Za-z])[A-Za-z]{2,}\s+|[.:,;]\s+)"
    rf"{_OPENERS}{_SIGN}(?:{_SPACE})*{_WRAPPERS}(?:\\\$)?\{{?$"
)
"""A sign before a box. In `x - \\boxed{5}` it joins two terms, and in a line `- \\boxed{5}` it may be a list bullet."""

_NUMBER = re.compile(r"\s*[-+]?(?:[\d.,]|\\[dt]?frac\{?\d+\}?\{?\d+\}?)+\s*")
_PERCENT = re.compile(rf"(?:{_SPACE})*\\?%")
_WORDS_AFTER = re.compile(
    rf"(?:\$\$?|\\[)\]]|\*\*){{0,2}}(?:\s|{_SPACE}){{0,2}}(?P<text>\\(?:text|mathrm|mbox)\s*\{{\s*)?"
    r"(?P<words>(?:[A-Za-z]+|/)(?:[ /-][A-Za-z]{2,}){0,3})(?:\}?\s*\^\{?(?P<power>[23]))?"
)
_NO_UNITS = frozenset({"in", "second", "gal", "mo", "min", "deg", "buck", "yard", "pound", "pounds"})
"""Names of units that are also everyday words, or names of two units."""


def has_sign_before(text: str, start: int) -> bool:
    r"""Whether a box has a sign of its own: `x = -\boxed{5}`, `-\left(\boxed{5}\right)`."""
    return _SIGN_BEFORE.search(text[max(0, start - REACH) : start]) is not None


def with_unit_after(text: str, box: Box) -> Box:
    r"""A number with the unit or per cent that follows its box: `$\boxed{5}$ cm`, `\boxed{5}\%`."""
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
