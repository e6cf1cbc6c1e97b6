r"""A number with a unit, currency, percent sign or scale → value and unit: 5 \text{ cm}, \$1.2k, 3 million."""

from __future__ import annotations

import re

from rewards.reading import phrases
from rewards.reading.numbers import Number, read_number
from rewards.reading.shapes import Choice, Exact, Node, Quantity, Unusable
from rewards.reading.units import FOREIGN_WORD, SCALES, is_known, read_unit

_NUMBER_HEAD = re.compile(r"[-+]?\s*[＄€£¥₹]?\s*(?:\d|\.\d|\\frac|\\sqrt|\\pi|pi(?![A-Za-z])|\()")
_TEXT = r"\\text\s*\{[^{}]*\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_TEXT_UNIT = rf"{_TEXT}{_POWER}(?:\s*(?:/|\\cdot)\s*{_TEXT}{_POWER})?"
_UNIT_TAIL = re.compile(
    r"(?P<value>.*?[\d})\]a-zπ]|.*?\\pi)\s*(?P<unit>(?:"
    r"\^\\circ\s*(?:[CF](?![A-Za-z]))?|\\%|[＄€£¥₹¢]"
    rf"|{_TEXT_UNIT}|{FOREIGN_WORD}{_POWER}|(?<=\d )[kM]?\\Omega"
    rf"|\(\s*(?:{_TEXT_UNIT}|[cmk]m{_POWER}|ft{_POWER}|kg|(?:sq\.? |square |cubic )?units?)\s*\)"
    rf"|(?<![\\A-Za-z])[A-Za-z][A-Za-z.]*(?:[ /-]+[A-Za-z.]+)*{_POWER}"
    rf")(?:\s*{_TEXT})?)\s*",
    re.DOTALL,
)
_SAID_AGAIN = re.compile(r"(?P<value>.*[\d}])\s*(?:\\text\s*\{\s*)?\(\s*(?P<words>[A-Za-z -]+)\)\s*\}?")
"""5 (five)"""
_BEFORE_TEXT = re.compile(r"[A-Za-z]+(?=\s*\\text)")
_GROUPED = re.compile(r"\d,\d{3}(?!\d)")
_CURRENCY_HEAD = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?:US|U\.S\.)?\s*(?P<currency>[＄€£¥₹])|(?P<code>USD|EUR|GBP|INR|Rs\.?|RMB|CNY)(?=\s*\.?\d)"
    r"|\\text\s*\{\s*(?P<text>USD|EUR|GBP|INR|RMB|CNY)\s*\})\s*(?P<value>.+)",
    re.DOTALL,
)
MAX_NUMBER_WORDS = 8
_CURRENCIES = frozenset("＄€£¥₹") | {"USD", "EUR", "GBP", "INR", "Rs", "Rs.", "RMB", "CNY"}
_ABBREVIATED = re.compile(r"(?P<value>\d[\d,]*(?:\.\d+)?)\s*(?P<scale>[kKMB])")
_SCALE_LETTERS = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}
"""Only after an amount of money: 3k without a currency is a product."""
_FACTOR = re.compile(r"(?:\\text\s*)?[{(\s]*(?:[xyznkeirqwMB]|pi|sqrt)(?![A-Za-z\\-])")
r"""What is no unit but multiplies the number: 5 \text{ x}, 7 \text{M}. K is kelvin; x-intercepts, and the values in
5 \text{ values of n}, are counted."""
_ARTICLE = re.compile(r"an? (?=\w)")
_PRODUCT = re.compile(r"[A-Za-z]{3,4}|(?:d[a-z]){2,3}")
"""Right behind a number it is a unit only if it is a known one: 5min, but not 5abx and 5dxdydz."""
_UNKNOWNS = ("abcdefgh", "klmn", "mnpq", "pqrst", "rst", "uvwxyz")
"""Neighbours in the alphabet are unknowns, although three letters may be a word: 5abc, 2xyz."""
_SHORT_UNITS = frozenset([
    "cm", "mm", "km", "dm", "kg", "mg", "ft", "in", "hr", "lb", "oz", "yd", "ml", "mL", "am", "pm", "US", "kJ", "kW",
    "kN", "kV", "Pa", "Hz", "sq", "cu",
])  # fmt: skip


def money(text: str) -> tuple[str, str | None] | None:
    r"""\$18.90, USD 50 and \$1.2k → the amount and the currency."""
    match = _CURRENCY_HEAD.fullmatch(text)
    if match is None:
        return None
    amount = match.group("value").strip()
    short = _ABBREVIATED.fullmatch(amount)
    if short:
        amount = f"{short.group('value')} {_SCALE_LETTERS[short.group('scale')]}"
    return match.group("sign") + amount, match.group("currency") or match.group("code") or match.group("text")


def number_and_unit(text: str) -> tuple[str, str | None] | None:
    """5 cm, 28%, 45° → the number and the unit. The unit is None if the words after the number change the meaning."""
    if not _NUMBER_HEAD.match(text):
        return None
    again = _SAID_AGAIN.fullmatch(text)
    said = phrases.phrase(again["words"]) if again else None
    if again and isinstance(said, str):
        return again["value"], "" if read_number(said) == read_number(again["value"]) else None
    match = _UNIT_TAIL.fullmatch(text)
    if match is None or (_is_algebra(match) and "\\text" not in match.group("unit")):
        return None
    if match.group("unit") == r"\%" in match.group("value"):
        return None  # 50% + 10%: the sign is part of each term
    value, unit = match.group("value"), match.group("unit")
    letters = _BEFORE_TEXT.match(unit)
    if (
        letters and _looks_like_algebra(letters.group()) and not is_known(read_unit(letters.group()) or "")
    ):  # 2ab \text{ cm}
        return value + letters.group(), read_unit(unit[letters.end() :])
    if _FACTOR.match(unit):
        return (value, None) if "\\text" in unit else None
    return value, read_unit(unit)


def counted(text: str) -> tuple[str, str] | None:
    """Seven days, two and a half hours, forty-two (42) → the number in digits and the unit."""
    words = phrases.fold(text).split()
    if not words or words[0] not in phrases.NUMBERS_BEGIN:
        return None
    for count in range(min(len(words) - 1, MAX_NUMBER_WORDS), 0, -1):
        number = phrases.phrase(" ".join(words[:count]))
        if isinstance(number, str):
            rest = " ".join(words[count:])
            again = read_number(rest.strip("()"))
            unit = "" if again is not None and again == read_number(number) else read_unit(rest)
            computes = _FACTOR.match(rest) or _looks_like_algebra(_ARTICLE.sub("", rest)) or rest.startswith("base ")
            return (number, unit) if unit is not None and not computes else None
    return None


def with_unit(value: Node, unit: str) -> Node:
    """The value as a quantity. A scale word multiplies it, and without a unit it stays as it is."""
    if isinstance(value, Quantity) and value.unit and unit:
        canonical = read_unit(value.unit + " " + unit) if unit not in "＄€£¥₹" else None
        unit = canonical or unit
        value = value.value
    canonical_unit = read_unit(unit) if unit in _CURRENCIES else unit
    if canonical_unit is None or isinstance(value, Choice):  # (C) was ruled out
        return Unusable("words_after_value")
    words = canonical_unit.split()
    if words and words[0] in SCALES:
        scaled = read_number(str(SCALES[words[0]]))
        if isinstance(value, Exact) and scaled is not None:
            number = Number(value.number.value * scaled.value)
            return with_unit(Exact(number), " ".join(words[1:])) if words[1:] else Exact(number)
        return Unusable("words_after_value")
    return Quantity(value, canonical_unit) if canonical_unit else value


def _is_algebra(match: re.Match[str]) -> bool:
    """Whether letters after a number are unknowns. After a number with thousands separators, letters that can be a unit
    are one."""
    value, unit = match.group("value", "unit")
    name = read_unit(unit)
    if _GROUPED.search(value) and read_number(value) and name:
        return False
    glued = match.end("value") == match.start("unit") and _PRODUCT.fullmatch(unit)
    return _looks_like_algebra(unit) or bool(glued and (name is None or not (name in {"", *SCALES} or is_known(name))))


def _looks_like_algebra(unit: str) -> bool:
    """Whether the letters look like algebra: 5x, 2ab, 3 sin x are expressions; 5 cm and 5 m are quantities."""
    plain = unit.strip()
    if not re.fullmatch(r"[A-Za-z]+(?:\s*\^.*)?(?:\s+[A-Za-z]+)*", plain):
        return False
    first = re.split(r"[\s^]", plain)[0]
    if plain in {"min", "sec", "deg"}:
        return False  # without an argument no function
    if len(first) >= 3:
        known = first.lower() in phrases.FUNCTION_NAMES or first.lower().startswith(
            ("sin", "cos", "tan", "log", "sqrt")
        )
        return known or any("".join(sorted(first)) in run for run in _UNKNOWNS)
    return first not in _SHORT_UNITS
