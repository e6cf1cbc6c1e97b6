r"""Numerals with their base → `Based`: 101_2, 413_{\text{five}}, (413)_5, 413 base 5, 413 (in base five)."""

from __future__ import annotations

import re

from rewards.reading.phrases import NUMBER_WORDS
from rewards.reading.shapes import Based
from rewards.spelling.split import without_text

_WORDS = "|".join(NUMBER_WORDS)
_NAME = rf"(?P<base>\d{{1,2}}|{_WORDS})"
_DIGITS = r"(?P<sign>-?)\s*(?P<open>\()?\s*(?P<digits>[0-9A-Fa-f]+)\s*(?(open)\))"
"""Digits, but not in square brackets: [3]_7 is a residue class."""
_NUMERAL = (
    re.compile(rf"{_DIGITS}\s*_\s*(?:\{{\s*\(?\s*(?:base )?\s*{_NAME}\s*\)?\s*\}}|(?P<bare>\d{{1,2}}|{_WORDS}))"),
    re.compile(rf"{_DIGITS}\s*\(?\s*(?:in )?(?:the )?base[ -]?{_NAME}\s*\)?"),
)
_IN_A_TERM = re.compile(r"(?<![\w^.}'])(?P<digits>\d+)\s*_\s*(?:\{\s*(?P<base>\d{1,2})\s*\}|(?P<bare>\d{1,2}))")
_OVERLINED = re.compile(r"\\overline\s*\{(\w+)\}(?=\s*_)")


def based(text: str) -> Based | None:
    """Read a numeral with its base; None for anything else, and for digits that the base does not have."""
    if "_" not in text and "base" not in text:
        return None
    bare = without_text(_OVERLINED.sub(r"\1", text))
    match = next((found for pattern in _NUMERAL if (found := pattern.fullmatch(bare))), None)
    if match is None:
        return None
    named = match.groupdict()
    name, digits = named["base"] or named["bare"], named["digits"].upper()
    base = int(NUMBER_WORDS.get(name, name))
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    if len(digits) == 1 and digits.isalpha():
        return None  # A_{12} is a term of a sequence
    return Based(named["sign"] + digits, base)


def in_base_ten(text: str) -> str:
    """101_2 + 11_2 → 5 + 3. A numeral with digits that its base does not have is left unchanged."""
    return _IN_A_TERM.sub(_value, text) if "_" in text else text


def _value(match: re.Match[str]) -> str:
    digits, base = match.group("digits"), int(match.group("base") or match.group("bare"))
    valid = 2 <= base <= 36 and all(int(digit) < base for digit in digits)
    return str(int(digits, base)) if valid else match.group()
