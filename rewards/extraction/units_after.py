r"""A number in a box → the number with the unit that follows it in words: `$\boxed{5}$ cm`."""

from __future__ import annotations

import re
from dataclasses import replace

from rewards.extraction.boxes import Box
from rewards.reading.units import is_known, read_unit

_NUMBER = re.compile(r"\s*[-+]?(?:[\d.,]|\\[dt]?frac\{?\d+\}?\{?\d+\}?)+\s*")
_WORDS_AFTER = re.compile(r"(?:\$\$?|\\[)\]]|\*\*){0,2}\s{0,2}((?:[A-Za-z]{2,}|/)(?:[ /-][A-Za-z]{2,}){0,3})")
_NO_UNITS = frozenset({"in", "second", "gal", "mo", "min", "deg", "buck", "yard", "pound", "pounds"})
"""Units that are everyday words as well, or of two kinds."""


def is_unit(word: str) -> bool:
    """Whether it is a unit beyond doubt: m may be an unknown."""
    return len(word) > 1 and is_known(read_unit(word) or "")


def with_unit_after(text: str, box: Box) -> Box:
    r"""A number and the unit that follows it in words: `$\boxed{5}$ cm`."""
    match = _WORDS_AFTER.match(text, box.end) if _NUMBER.fullmatch(box.content) else None
    words = match.group(1).split(" ") if match else []
    for count in range(len(words), 0, -1):
        said = " ".join(words[:count])
        if not {words[0].lower(), words[count - 1].lower()} & _NO_UNITS and is_unit(said):
            return replace(box, content=rf"{box.content}\text{{ {said}}}", boxed=box.content)
    return box
