"""Numbers too long for the parser → their exact value, digit by digit.

A 1 followed by a thousand zeros is 10^{1000}: plain numbers are decided, however long. The standard library's
`Decimal` holds such numbers exactly and compares them without rounding.
"""

from __future__ import annotations

import re
from decimal import Decimal

MAX_NUMERAL_CHARS = 20_000
_SEPARATORS = re.compile(
    r"(?<=\d)(?:\\[,!; ]|\{,\}|,\\!|[, ~])(?=\d{3}(?!\d))|\s|\\left|\\right|\\displaystyle|[${}]|\\[()\[\]]"
)
_NUMERAL = re.compile(r"([-+]?)(\d+(?:\.\d+)?)\.?")
_POWER_OF_TEN = re.compile(r"([-+]?)(?:(\d+(?:\.\d+)?)(?:\\times|\\cdot|\*|×|·))?10(?:\^|\*\*)\(?(\d{1,6})\)?")
_E_NOTATION = re.compile(r"([-+]?)(\d+(?:\.\d+)?)[eE]\+?(\d{1,6})")


def numeral(text: str) -> Decimal | None:
    """The value of a whole number or a decimal of any length, or of a multiple of a power of ten."""
    if len(text) > MAX_NUMERAL_CHARS:
        return None
    bare = _SEPARATORS.sub("", text.strip().replace("−", "-"))
    match = _NUMERAL.fullmatch(bare)
    if match:
        return Decimal(match.group(1) + match.group(2))
    match = _POWER_OF_TEN.fullmatch(bare) or _E_NOTATION.fullmatch(bare)
    return Decimal(f"{match.group(1)}{match.group(2) or 1}E{match.group(3)}") if match else None


def is_integer_of(value: Decimal, number: int) -> bool:
    """Whether a long numeral equals an integer. Their lengths are compared before their digits."""
    digits = number.bit_length() * 0.30103  # log10(2)
    return abs(value.adjusted() + 1 - digits) < 2 and Decimal(number) == value
