r"""Plain numbers → exact fractions, without a parser: the fast path, and the only judge of numbers.

Handles integers, decimals, thousands separators, fractions, mixed numbers and scientific notation.
Numbers read here are also compared here, exactly; floats never decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 4_000
ROUNDED_DIGITS = 12
"""A decimal with at least this many significant digits may stand for the exact value that it rounds."""

_THOUSANDS = re.compile(r"\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}")
_LAKH = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_PLAIN = r"(?:\d+\.?\d*|\.\d+)"
_DECIMAL = re.compile(_PLAIN)
_SLASH = re.compile(rf"({_PLAIN})\s*/\s*({_PLAIN})")
_FRAC = re.compile(rf"\\frac\s*(?:\{{\s*(-?{_PLAIN})\s*\}}|(\d))\s*(?:\{{\s*(-?{_PLAIN})\s*\}}|(\d))")
_MIXED = re.compile(r"(\d+)\s*(?:\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d)))|(\d+) (\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(
    rf"(?:({_PLAIN})\s*(?:\\times|\\cdot|\*|x|X)\s*)?10\s*(?:\^|\*\*)\s*(?:\{{\s*([-+]?\d+)\s*\}}|([-+]?\d+)|\(\s*([-+]?\d+)\s*\))"
)
_E_NOTATION = re.compile(rf"({_PLAIN})[eE]([-+]?\d+)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, and the number of significant digits in its decimal spelling (0 if exact)."""

    value: Fraction
    digits: int = 0


def read_number(text: str) -> Number | None:
    """The number that a cleaned text spells out, or None."""
    text = text.strip()
    sign = 1
    while text[:1] in {"-", "+"}:
        sign = -sign if text[0] == "-" else sign
        text = text[1:].lstrip()
        if sign == -1 and text[:1] in {"-", "+"}:
            return None
    if not text or text[-1] not in "0123456789.})":
        return None
    number = _unsigned(text)
    return None if number is None else Number(sign * number.value, number.digits)


def _unsigned(text: str) -> Number | None:
    if text.isdecimal():
        return Number(Fraction(int(text)))
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    if _THOUSANDS.fullmatch(text) or _LAKH.fullmatch(text):
        if text.count(".") > 1:
            text = text.replace(".", "")
        return _decimal(re.sub(r"[, ']", "", text))
    for pattern, reader in _READERS:
        match = pattern.fullmatch(text)
        if match:
            return reader([group for group in match.groups() if group is not None])
    return None


def _decimal(text: str) -> Number:
    text = text.rstrip(".") or "0"
    if "." not in text:
        return Number(Fraction(int(text)))
    return Number(Fraction(text if text[0] != "." else "0" + text), len(text.replace(".", "").lstrip("0")))


def _quotient(parts: list[str]) -> Number | None:
    over, under = (_signed_decimal(part) for part in parts)
    return None if under == 0 else Number(over / under)


def _signed_decimal(text: str) -> Fraction:
    sign = -1 if text.startswith("-") else 1
    return sign * _decimal(text.lstrip("-")).value


def _mixed(parts: list[str]) -> Number | None:
    """3 1/2 is three and a half; 3 5/2 is not a mixed number, and 3-1/2 is a difference."""
    whole, over, under = (int(part) for part in parts)
    if under == 0 or over >= under:
        return None
    return Number(whole + Fraction(over, under))


def _scaled(parts: list[str]) -> Number | None:
    """5 \\times 10^3, or 10^3 alone."""
    mantissa, exponent = parts if len(parts) == 2 else ("1", *parts)
    if len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return Number(_decimal(mantissa).value * Fraction(10) ** int(exponent))


def _repeating(parts: list[str]) -> Number | None:
    return Number(repeating(*parts))


def repeating(whole: str, fixed: str, period: str) -> Fraction:
    """The value of the decimal whole.fixed period period …"""
    base = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return base + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))


_READERS = (
    (_SLASH, _quotient),
    (_FRAC, _quotient),
    (_MIXED, _mixed),
    (_E_NOTATION, _scaled),
    (_REPEATING, _repeating),
    (_SCIENTIFIC, _scaled),
)


def same_number(left: Number, right: Number) -> bool:
    """Whether two numbers are equal, or one is a long decimal that rounds the other (1.4142135623731 has enough digits,
    1.414 does not)."""
    if left.value == right.value:
        return True
    for decimal, other in ((left, right), (right, left)):
        if decimal.digits >= ROUNDED_DIGITS and (other.digits == 0 or other.digits > decimal.digits):
            return rounds_to(other.value, decimal)
    return False


def rounds_to(value: Fraction, decimal: Number) -> bool:
    """Whether `decimal` differs from `value` by less than one unit of its last digit."""
    if decimal.value == 0 or value == 0:
        return False
    size = abs(decimal.value)
    magnitude = 0
    while size >= 10:
        size /= 10
        magnitude += 1
    while size < 1:
        size *= 10
        magnitude -= 1
    return abs(value - decimal.value) < Fraction(10) ** (magnitude - decimal.digits + 1)
