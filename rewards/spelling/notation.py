r"""Rare notation for a fraction, a repeating decimal, an interval or a sign → the usual notation.

{1 \over 2} is \frac{1}{2}, {n \choose 2} is \binom{n}{2}, and 0.333\ldots, 0.(3), 0.\dot{3} are 0.\overline{3}.
]0,1[ is (0,1) in French notation, and plain typing gives (0,1) U (2,3), +/- and 60^o.
"""

from __future__ import annotations

import re

from rewards.spelling.split import RELATIONS

MAX_FRACTIONS = 20
MIN_REPEATS = 2
"""How often digits before an ellipsis must repeat to be a period: 0.33… is a third, 0.3… may be anything."""

_INFIX = re.compile(r"\\(over|choose)(?![A-Za-z])")
_PREFIX = {"over": r"\frac", "choose": r"\binom"}
_ARGUMENT = re.compile(r"(?:\\[A-Za-z]+\s*|[\^_}\]])$")
r"""Precedes a brace that belongs to something other than the fraction: \sqrt{…}, x^{…}."""
_OPEN, _CLOSE = "{([", "})]"
_ENDS = re.compile("|".join(rf"{re.escape(sign)}(?![A-Za-z])" for sign in RELATIONS) + r"|[,;]")

_OVERLINED = re.compile(r"(\.\d*)\\(?:overline|bar|widebar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\d*\\dot)")
_DOTTED = re.compile(r"(\.\d*)\\dot\s*\{?\s*(\d)\s*\}?(\d*)\\dot\s*\{?\s*(\d)\s*\}?")
_IN_PARENTHESES = re.compile(r"(?<![\w)}])(\d*\.\d*)\((\d+)\)")
_ELLIPSIS = re.compile(r"(?<![\w.])(\d*\.)(\d+)\s*(?:\\ldots|\.\.\.)(?![\d.])")
_RARE = re.compile(r"\\(?:over|choose|overline|bar|widebar|dot)(?![a-z])|\.\d+ ?(?:\.\.\.|\\ldots)|\.\d*\(\d")

_TYPED = (
    (re.compile(r"\+\s*/\s*-"), r"\\pm "),
    (re.compile(r"(?<=[(\[,])\s*([-+]?)\s*inf(?:inity)?\s*(?=[,)\]])"), r"\1\\infty "),
    (
        re.compile(r"(?<=\d)\s*\^\s*(?:o|\\text\s*\{\s*o\s*\}|\{\s*(?:o|\\text\s*\{\s*o\s*\})\s*\})(?![A-Za-z])"),
        r"^\\circ ",
    ),
    (re.compile(r"(?<=[)\]}])\s*(?:U|\\text\s*\{\s*(?:U|union)\s*\}|union)\s*(?=[(\[\]][^()\[\]]*,|\\\{)"), r" \\cup "),
)
_IS_TYPED = re.compile(r"\+ ?/ ?-|inf[i ,)\]]|\^ ?\{? ?(?:o|\\text *\{ *o)|[)\]}] ?(?:U|\\text *\{ *[Uu]|union)")
_TURNED = re.compile(
    r"(?P<start>[\[\]])(?P<ends>[^\[\](),;]+[,;][^\[\](),;]+)(?P<stop>[\[\]])(?=\s*(?:$|[\\,;}|]|or|and))"
)
_BEFORE_INTERVAL = re.compile(r"(?:^|[=:,{}]|\\(?:cup|cap|setminus|in)|(?<![A-Za-z])(?:or|and))\s*$")


def usual(text: str) -> str:
    """Rewrite all of these in the usual notation."""
    if _IS_TYPED.search(text):
        for pattern, replacement in _TYPED:
            text = pattern.sub(replacement, text)
    if "]" in text or "[" in text:
        text = _TURNED.sub(_with_round_brackets, text)
    if not _RARE.search(text):
        return text
    for _ in range(MAX_FRACTIONS):
        infixes = list(_INFIX.finditer(text))
        if not infixes:
            break
        text = _prefixed(text, infixes[-1])
    text = _DOTTED.sub(r"\1\\overline{\2\3\4}", text)
    text = _OVERLINED.sub(lambda m: rf"{m.group(1)}\overline{{{m.group(2) or m.group(3)}}}", text)
    text = _IN_PARENTHESES.sub(r"\1\\overline{\2}", text)
    return _ELLIPSIS.sub(_with_period, text)


def _with_round_brackets(match: re.Match[str]) -> str:
    """]0,1[ → (0,1): a square bracket that faces away from the interval excludes its endpoint."""
    start, ends, stop = match.groups()
    if start == "]" and not _BEFORE_INTERVAL.search(match.string[: match.start()]):
        return match.group()
    return ("(" if start == "]" else "[") + ends + (")" if stop == "[" else "]")


def _prefixed(text: str, infix: re.Match[str]) -> str:
    r"""`{A \over B}` → `\frac{A}{B}`. It spans its whole group, or the side of the relation that it is in."""
    start, end = _start_of_group(text, infix.start()), _end_of_group(text, infix.end())
    over, under = text[start : infix.start()].strip(), text[infix.end() : end].strip()
    fraction = f"{_PREFIX[infix.group(1)]}{{{over}}}{{{under}}}"
    braced = text[start - 1 : start] == "{" and text[start - 2 : start - 1] != "\\" and text[end : end + 1] == "}"
    if braced and not _ARGUMENT.search(text[: start - 1]):
        start, end = start - 1, end + 1
    return text[:start] + fraction + text[end:]


def _start_of_group(text: str, position: int) -> int:
    depth = 0
    bounds = {match.end() for match in _ENDS.finditer(text, 0, position)}
    for start in range(position, 0, -1):
        if depth == 0 and start in bounds:
            return start
        before = text[start - 1]
        depth += (before in _CLOSE) - (before in _OPEN)
        if depth < 0:
            return start
    return 0


def _end_of_group(text: str, position: int) -> int:
    depth = 0
    bounds = {match.start() for match in _ENDS.finditer(text, position)}
    for end in range(position, len(text)):
        if depth == 0 and end in bounds:
            return end
        depth += (text[end] in _OPEN) - (text[end] in _CLOSE)
        if depth < 0:
            return end
    return len(text)


def _with_period(match: re.Match[str]) -> str:
    r"""0.1666\ldots → 0.1\overline{6}; digits without a period stay as they are."""
    whole, digits = match.groups()
    best: tuple[int, int] | None = None  # (digits that repeat, period): the longest run, then the shortest period
    for period in range(1, len(digits) // MIN_REPEATS + 1):
        last = digits[-period:]
        repeats = 1
        while digits.endswith(last * (repeats + 1)):
            repeats += 1
        if repeats >= MIN_REPEATS and last.strip("0") and (best is None or repeats * period > best[0]):
            best = (repeats * period, period)
    if best is None:
        return match.group()
    run, period = best
    return rf"{whole}{digits[: len(digits) - run]}\overline{{{digits[-period:]}}}"
