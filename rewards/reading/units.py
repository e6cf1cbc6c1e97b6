"""Words after a number → a unit with a dimension and size, so that 90 minutes are 1.5 hours and 5 km are not 5 m."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.reading.phrases import NUMBER_WORDS, TENS
from rewards.spelling.split import without_text

Dimension = tuple[tuple[str, int], ...]


def _powers(dimension: str) -> Dimension:
    """mass length^2 → mass once, length twice."""
    parts = (factor.partition("^") for factor in dimension.split())
    return tuple((name, int(power or 1)) for name, _, power in parts)


_PREFIXED = (("", "", Fraction(1)), ("kilo", "k", Fraction(1_000)), ("mega", "M", Fraction(10**6)),
             ("giga", "G", Fraction(10**9)), ("milli", "m", Fraction(1, 1_000)))  # fmt: skip
_PHYSICAL = (
    ("joule", "J", "mass length^2 time^-2", 1), ("watthour", "Wh", "mass length^2 time^-2", 3_600),
    ("newton", "N", "mass length time^-2", 1), ("watt", "W", "mass length^2 time^-3", 1),
    ("pascal", "Pa", "mass length^-1 time^-2", 1), ("hertz", "Hz", "time^-1", 1), ("volt", "V", "voltage", 1),
    ("ampere", "A", "current", 1), ("ohm", "Omega", "resistance", 1), ("mole", "mol", "amount", 1),
)  # fmt: skip


def _spellings(letter: str, short: str) -> set[str]:
    """kW is also KW, Kw and kw, and MHz mhz; J, N, V and W alone are capital, and A alone is an article."""
    if not letter and len(short) == 1:
        return {short} - {"A"}
    if letter + short == "mHz" or short == "Omega":
        return {letter + short}
    letters = {letter, letter.upper() if letter == "k" else letter, letter.lower() if short == "Hz" else letter}
    return {first + case for first in letters for case in (short, short.lower(), short.upper(), short.capitalize())}


_SYMBOLS = {
    symbol: prefix + name
    for name, short, _, _ in _PHYSICAL
    for prefix, letter, _ in _PREFIXED
    for symbol in _spellings(letter, short)
}
"""The case of M counts: MW and mW."""

_BASES: dict[str, tuple[Dimension, Fraction, str]] = {
    name: (_powers(dimension), Fraction(size), canonical)
    for canonical, dimension, size, names in (
        ("mm", "length", "1/1000", "mm mms millimeter millimetre 毫米 мм"),
        ("cm", "length", "1/100", "cm cms centimeter centimetre 厘米 см сантиметр сантиметра сантиметров"),
        ("dm", "length", "1/10", "dm decimeter decimetre 分米 дм"),
        ("m", "length", "1", "m meter metre mtr 米 公尺 м метр метра метров"),
        ("km", "length", "1000", "km kms kilometer kilometre 千米 公里 км километр километра километров"),
        ("inch", "length", "127/5000", "in inch inche"),
        ("foot", "length", "381/1250", "ft fts foot feet 英尺"),
        ("yard", "length", "1143/1250", "yd yds yard"),
        ("mile", "length", "201168/125", "mi mile"),
        ("mg", "mass", "1/1000000", "mg mgs milligram 毫克 мг"),
        ("g", "mass", "1/1000", "g gm gms gram 克 г грамм грамма граммов"),
        ("kg", "mass", "1", "kg kgs kilogram kilo 千克 公斤 кг килограмм килограмма килограммов"),
        ("ounce", "mass", "45359237/1600000000", "oz ozs ounce"),
        ("pound", "mass", "45359237/100000000", "pound"),
        ("lb", "mass", "45359237/100000000", "lb lbs 磅"),
        ("ton", "mass", "1000", "tonne 吨"),
        ("second", "time", "1", "s sec secs second 秒 с сек секунда секунды секунд"),
        ("minute", "time", "60", "min mins minute 分钟 мин минута минуты минут"),
        ("hour", "time", "3600", "h hr hrs hour 小时 ч час часа часов"),
        ("day", "time", "86400", "day 天 日 день дня дней"),
        ("week", "time", "604800", "week wk wks 周"),
        ("month", "months", "1", "month mo mos 个月"),
        ("year", "months", "12", "year yr yrs 年 год года лет"),
        ("ml", "length^3", "1/1000000", "ml mls milliliter millilitre 毫升 мл"),
        ("cl", "length^3", "1/100000", "cl centiliter centilitre"),
        ("liter", "length^3", "1/1000", "l ltr liter litre 升 л литр литра литров"),
        ("gallon", "gallon", "1", "gallon gal gals"),
        ("quart", "gallon", "1/4", "quart qt qts"),
        ("pint", "gallon", "1/8", "pint"),
        ("degree", "angle", "1", "degree deg degs ° 度 градус градуса градусов"),
        ("radian", "radian", "1", "radian rad rads"),
        ("dollar", "dollar", "1", "＄ dollar usd buck 美元"),
        ("cent", "dollar", "1/100", "cent ¢ ¢ 美分"),
        ("euro", "euro", "1", "€ euro eur 欧元"),
        ("pound sterling", "sterling", "1", "£ gbp"),
        ("rupee", "rupee", "1", "₹ rupee rs inr"),
        ("yen", "yen", "1", "¥ yen 円 日元"),
        ("yuan", "yuan", "1", "yuan rmb cny 元 人民币"),
        ("ruble", "ruble", "1", "ruble rouble руб рубль рубля рублей"),
        ("percent", "percent", "1", r"% \% percent percentage pct процент процента процентов"),
        *(
            (prefix + name, dimension, str(size * factor), prefix + name)
            for name, _, dimension, size in _PHYSICAL
            for prefix, _, factor in _PREFIXED
        ),
    )
    for name in names.split()
}
_COUNTING_WORDS = frozenset(
    "个個只隻本人名位棵张張条件辆次种颗块支页頁枚匹头台把根间套岁歳步道题朵架艘盒袋箱瓶杯组班개명권"
)
"""Counters that Chinese, Japanese and Korean put between a number and the thing counted: 25 个 is 25, and 25 apples."""
_PREFIXES = {"平方": "square ", "立方": "cubic ", "每": "per "}
_COMPOUND = {
    "mph": "mile/hour", "kmph": "km/hour", "kmh": "km/hour", "kph": "km/hour", "sq": "square", "cu": "cubic",
    "sqft": "square foot", "mps": "m/second",
}  # fmt: skip
_NAMED_OTHERWISE = re.compile(r"(?P<percent>\bper[ -]?cents?\b)|\b(?:US|U S|American)\s+(?=dollar)")
_IGNORED = {"of", "the", "a", "an", "in", "about", "unit", "total", "full", "whole", "exactly", "each"}
_WORDS_OF_UNITS = {"unit", "square", "cubic", "sq", "cu", "^2", "^3", "of", "length", "area"}
_COUNTERS = {"square": 2, "cubic": 3}
SCALES = {
    "hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000, "trillion": 10**12,
    "quadrillion": 10**15, "bn": 10**9, "milliard": 10**9, "milliarden": 10**9, "mrd": 10**9, "millionen": 10**6,
    "mio": 10**6, "millone": 10**6, "tausend": 1_000, "mille": 1_000, "hundert": 100, "dutzend": 12, "douzaine": 12,
    "lakh": 10**5, "crore": 10**7, "dozen": 12, "mila": 1_000, "milioni": 10**6, "mln": 10**6, "tys": 1_000,
    "duizend": 1_000, "tusen": 1_000, "miljoen": 10**6, "docena": 12,
}  # fmt: skip
_NUMBER_WORDS = frozenset([*NUMBER_WORDS, *TENS, "pi", *SCALES])
_COMPUTES = frozenset(["times", "point", "comma", "to", "choose", "by", "per", "x"])
_COMPUTES_AT_ONCE = _COMPUTES | {"through", "into"}
"""Behind the number itself: 5 through ten, but 5 lines through two points and 5 balls into two boxes."""
_LAST = frozenset([
    *(f"{word}s" for word in [*NUMBER_WORDS][2:]), "sixes", *(f"{word[:-1]}ies" for word in TENS),
    "halve", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth", "sixteenth",
    "twentieth", "hundredth", "thousandth", "millionth", "billionth", "mil", "gross", "permille", "promille",
    "rejected", "extraneous", "excluded", "discarded", "invalid", "doubled", "tripled", "halved", "inverted",
])  # fmt: skip
"""5 tenths are a half, 5 twos ten, 5 mil may be 5000, and 5 (rejected) is no answer. Before another word they tell
which are counted: 5 eighth graders, 5 rejected items."""
DECEPTIVE = frozenset([
    "not", "no", "isn't", "isnt", "never", "wrong", "incorrect", "false", "maybe", "perhaps", "possibly",
    "probably", "either", "neither", "nor", "or", "and", "unless", "if", "except", "plus", "minus", "least",
    "most", "between", "over", "under", "than", "above", "below", "until", "squared", "cubed", "half",
    "quarter", "third", "double", "twice", "triple", "approximately", "approx", "roughly", "around", "nearly",
    "almost", "guess", "placeholder", "unknown", "cannot", "impossible", "but", "actually", "instead", "rather",
    "versus", "vs", "error", "mistake", "other", "otherwise", "alternatively", "depends", "greater", "smaller",
    "without", "divided", "multiplied", "power", "root", "factorial", "mod", "modulo", "remainder", "ignore",
    "ish", "oder", "ou", "nicht", "halb", "halbe", "dne", "undefined", "falsch", "faux", "falso", "incorrecto",
    "und", "et", "mehr", "demi", "medio", "environ", "circa",
])  # fmt: skip
_COUNTED = re.compile(r"(?<!square )(?<!cube )\b(?:roots|triples|powers|errors|mistakes|remainders|unknowns)\b")
"""Things that are counted, although one of them would change the value: 5 roots, but not 5 root 3."""
_FOREIGN = "\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
FOREIGN_WORD = rf"[{_FOREIGN}]+(?:\s*/\s*[{_FOREIGN}]+)?"
_WORD = re.compile(rf"[{_FOREIGN}]+|" + r"[A-Za-z]+(?:'[a-z]+)?|[＄€£¥₹¢°%]|\\%|\^-?\d+|\d+|/|\^")
_WRITTEN = re.compile(r"[a-z'-]+")
_HYPHEN = re.compile(r"(?<!\^)-")
_POWER_IN_WORDS = re.compile(r"(?<=[a-z])\s+(?P<power>squared|cubed)\b")
_BY_WORD = re.compile(r"\bdegrees?\s+([CF])(?:elsius|ahrenheit)?\b")


def read_unit(text: str) -> str | None:
    """The canonical name of the unit in the words after a number, or the words themselves if they are unknown.

    None if the words change the meaning ("or 43", "is wrong", "at least"), so that nothing can hide in them.
    """
    text = without_text(text).replace(r"^\circ", "°").replace(r"\Omega", "Omega")
    text = text.replace("\\", " ")
    text = re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", text).replace(".", " ").replace("(s)", "s").strip()
    if "per" in text or "dollar" in text:
        text = _NAMED_OTHERWISE.sub(lambda match: "percent" if match.group("percent") else "", text)
    for prefix, word in _PREFIXES.items():
        text = text.replace(prefix, f" {word}")
    text = _POWER_IN_WORDS.sub(lambda match: " ^2" if match["power"] == "squared" else " ^3", text)
    written = _WRITTEN.findall(text.lower())
    text = _BY_WORD.sub(r"° \1", re.sub(r"\bcdot\b", " ", _HYPHEN.sub(" ", text)))
    words = [_SYMBOLS.get(word) or _SYMBOLS.get(one := _singular(word), one) for word in _WORD.findall(text)]
    if any(not word.isascii() and word.isalpha() and word not in _BASES for word in words):
        return "" if len(words) == 1 and words[0] in _COUNTING_WORDS else None
    rest = _WORD.sub("", text)
    if re.search(r"[^\s(){}*,]", rest) or not words or len(words) > 8:
        return None
    lowered, as_written = [word.lower() for word in words], _words(text)
    # As written too: the singular of "perhaps" is no word.
    suspicious = _words(_COUNTED.sub("", text.lower()))
    if DECEPTIVE & {*suspicious, *map(_singular, suspicious)} or any(word.isdigit() for word in words):
        return None
    if _holds_number(written):
        return None
    if "unit" in lowered and set(lowered) <= _WORDS_OF_UNITS:
        return ""
    known = _known(lowered)
    if known is not None:
        return known
    for word, after in zip(as_written, [*as_written[1:], ""], strict=True):
        if after in ("", "of") and _LAST & {word, _singular(word)}:
            return None
    if any(word.lstrip("^-").isdigit() or word in {"/", "^"} for word in words):
        return None
    kept = [word for word in lowered if word not in _IGNORED]
    return " ".join(kept)


def _holds_number(words: list[str]) -> bool:
    """Whether words after a number are another number or compute with one: 5 six, 5 point five, 5 times two, 5 per
    thousand. 5 three-digit numbers are counted."""
    numbers = [word in _NUMBER_WORDS for word in words]
    pairs = enumerate(zip(words, numbers[1:], strict=False))
    computed = any(number and word in (_COMPUTES if at else _COMPUTES_AT_ONCE) for at, (word, number) in pairs)
    return computed or (all(numbers) and not set(words[:1]) <= set(SCALES))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _singular(word: str) -> str:
    """hours → hour, inches → inch, feet → foot. Short unit symbols stay as they are."""
    lower = word.lower()
    if lower in _BASES or lower in _COMPOUND or len(word) < 4:
        return "in" if lower == "in" else word
    for ending, replacement in (("ches", "ch"), ("ies", "y"), ("s", "")):
        if lower.endswith(ending) and not lower.endswith("ss"):
            return lower[: -len(ending)] + replacement
    return lower


def _known(words: list[str]) -> str | None:
    """The canonical form of a product of known units: "square cm", "cm ^2", "mile per hour"."""
    expanded = " ".join(_COMPOUND.get(word, word) for word in words).replace("/", " / ").split()
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, None
    for position, word in enumerate(expanded):
        if word in {"per", "/"}:
            sign = -1
        elif word in _COUNTERS:
            pending = _COUNTERS[word]
        elif word.startswith("^") and word[1:].lstrip("-").isdigit() and last is not None:
            powers[last] += sign * (int(word[1:]) - 1)
        elif word in _BASES:
            last = _BASES[word][2]
            powers[last] = powers.get(last, 0) + sign * pending
            pending = 1
        elif word not in {"unit", "of", "old"} or position == 0:
            return None
    if not powers:
        return None
    return "·".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()) if power)


def conversion(left: str, right: str) -> Fraction | None:
    """How many `right` are in one `left`, or None if they do not measure the same dimension."""
    one, other = _dimension(left), _dimension(right)
    if one is None or other is None or one[0] != other[0]:
        return None
    return one[1] / other[1]


_BY_CANONICAL = {canonical: (dimension, size) for dimension, size, canonical in _BASES.values()}


def _dimension(unit: str) -> tuple[Dimension, Fraction] | None:
    total: dict[str, int] = {}
    scale = Fraction(1)
    for factor in unit.split("·"):
        name, _, power_text = factor.partition("^")
        if name not in _BY_CANONICAL:
            return None
        power = int(power_text or 1)
        dimension, size = _BY_CANONICAL[name]
        for quantity, times in dimension:
            total[quantity] = total.get(quantity, 0) + times * power
        scale *= size**power
    return tuple(sorted((quantity, power) for quantity, power in total.items() if power)), scale


def is_known(unit: str) -> bool:
    return _dimension(unit) is not None


def same_things(left: str, right: str) -> bool:
    """Whether two names may be of the same counted things: "distinct integer" and "integer", not "dog" and "cat"."""
    one, other = set(left.split()), set(right.split())
    return not one or not other or one <= other or other <= one


_PRIME = r"(?:'|\^\{?\\prime\}?)"
_DEGREES = re.compile(
    rf"(?P<sign>-?)(?P<degrees>\d+)\s*\^\\circ\s*(?P<minutes>[0-5]?\d(?:\.\d+)?)\s*{_PRIME}"
    rf"(?:\s*(?P<seconds>[0-5]?\d(?:\.\d+)?)\s*(?:\"|''|\^\{{\\prime\s*\\prime\}}))?"
)
_PARTS_OF_A_DEGREE = {"degrees": 1, "minutes": 60, "seconds": 3600}
_IN_TWO_UNITS = re.compile(r"(\d+) ?([A-Za-z]+)\.? ?,? ?(?:and )?(\d+(?:\.\d+)?) ?([A-Za-z]+)\.?")


def in_two_units(text: str) -> tuple[Fraction, str] | None:
    """3 hours 20 minutes → 200 minutes, 22°30' → 22.5 degrees; None if the units do not measure the same dimension."""
    angle = _DEGREES.fullmatch(text)
    if angle:
        parts = (Fraction(angle.group(name) or 0) / count for name, count in _PARTS_OF_A_DEGREE.items())
        size = sum(parts, Fraction(0))
        return (-size if angle.group("sign") else size), "degree"
    match = _IN_TWO_UNITS.fullmatch(without_text(text))
    if match is None:
        return None
    larger, smaller = read_unit(match.group(2)), read_unit(match.group(4))
    factor = conversion(larger, smaller) if larger and smaller else None
    if smaller is None or factor is None or factor <= 1:
        return None
    return int(match.group(1)) * factor + Fraction(match.group(3)), smaller
