r"""Cleaned answer text → LaTeX that math-verify's parser reads the way a human reader does.

People write 3*sqrt(5), 8pi, x^10 and \frac12; the parser wants \sqrt{5}, 8\pi, x^{10} and \frac{1}{2}.
Decimals become fractions, so that no float ever takes part in a comparison.
"""

from __future__ import annotations

import re

from rewards.reading.bases import in_base_ten
from rewards.reading.numbers import repeating
from rewards.reading.slashes import with_fractions

_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min|det|arg"
_GREEK = "alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|tau|pi|mu|infty"

_COUNT = r"(?:\d+|[nmkrN])(?:\s*[-+]\s*\d+)?"
_CHOSEN = (
    r"(?:\{\s*\}\s*|(?<![\w)\]}'!|])(?<![\w)\]}] ))"
    rf"[_^]\s*\{{?(?P<of>{_COUNT})\}}?\s*(?P<letter>[CP])\s*_\s*\{{?(?P<chosen>{_COUNT})\}}?"
)
"""_5C_2 and ^5C_2 with nothing before them: x^5C_2 is a product."""

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\*\*", "^"),
        (r"\\operatorname\s*\*?\s*\{\s*([A-Za-z]+)\s*\}", r"\\\1 "),
        (rf"\\text\s*\{{\s*({_FUNCTIONS}|i|e)\s*\}}", r"\\\1 "),
        (r"\\(i|e)(?![A-Za-z])", r" \1 "),
        (r"(?<![\\A-Za-z])log(2|10)\s*(?=\()", r"\\log_{\1} "),
        (r"(?<![\\A-Za-z])cbrt\s*\(([^()]*)\)", r"\\sqrt[3]{\1}"),
        (r"(?<![\\A-Za-z])abs\s*\(([^()|]*)\)", r"|\1|"),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt\s*\{", r"\\sqrt{"),
        (r"(?<![\\A-Za-z])sqrt\s*(\d+|[a-z])", r"\\sqrt{\1}"),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
        (r"\\lg(?![A-Za-z])", r"\\log_{10} "),
        # \log_23 is the base-2 logarithm of 3, as TeX renders it; but all digits before a space and an operand are the
        # base: \log_10 5.
        (r"\\log\s*_\s*(\d\d+)(?=\s+(?:[\dA-Za-z({]|\\(?:sqrt|frac|pi)))", r"\\log_{\1}"),
        (r"\\log\s*_\s*([\dA-Za-z])", r"\\log_{\1} "),
        (rf"(?<![\\A-Za-z])({_GREEK})(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\[([^\[\]]*)\]\s*(\d|[A-Za-z])", r"\\sqrt[\1]{\2}"),
        (r"\\sqrt\s*\\pi", r"\\sqrt{\\pi}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\\[a-z]+)\s*(?=[\d{a-z])", r"\\frac{\1}"),
        (r"\\frac\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*(\d|[a-z]|\\[a-z]+)", r"\\frac\1{\2}"),
        (r"\\frac\s*([a-z\d])\s*([a-z\d])", r"\\frac{\1}{\2}"),
        (r"\\binom\s*([a-z\d])\s*([a-z\d])", r"\\binom{\1}{\2}"),
        (r"((?:(?<![\d.])\d+|(?<![A-Za-z\\])(?:[A-Za-z]|\([^()]*\)))!)\s*\^", r"(\1)^"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?)\s*(\d+(?:\.\d+)?(?!\d|\.[\\(])|[A-Za-z])", r"^{\1\2}"),
        (r"\\(max|min|gcd)\s*\\\{(.*?)\\\}", r"\\\1(\2)"),
        (r"(\d)\s*\\div\s*", r"\1 / "),
        (r"(?<=[\d)}])\s*\\%", r" \\cdot \\frac{1}{100} "),
        (r"(?<![_^A-Za-z\\\d.{])(\d+)\s*\(", r"\1 \\cdot ("),
        (r"(?<=[)\]])\s*(?=[\d(\\])(?!\\(?:cdot|times|div|le|ge|ne|in|cup|cap|pm|mp|to|right))", r" \\cdot "),
    )
)  # fmt: skip
_COUNTS = tuple(
    re.compile(pattern)
    for pattern in (
        _CHOSEN,
        rf"(?<![A-Za-z\\])(?P<letter>[CP])\s*\(\s*(?P<of>{_COUNT})\s*,\s*(?P<chosen>{_COUNT})\s*\)",
        r"(?<![A-Za-z\\])(?P<letter>[CPA])\s*_\s*\{?(?P<of>\d+)\}?\s*\^\s*\{?(?P<chosen>\d+)\}?",
        r"(?<![\w\\.^])(?P<of>\d+)(?P<letter>[CP])_?(?P<chosen>\d+)(?![\w.(])",
    )
)
"""Combinations and permutations: C(5,2), {}_5P_2, C_5^2, 5C2."""
_PRIMED = re.compile(r"([A-Za-z])('+)")
"""The parser drops primes, which would make f' and f the same."""
_INVERSE = re.compile(r"(?<![A-Za-z\\])([fghFGH])\s*\^\s*\{\s*-\s*1\s*\}\s*(?=\()")
"""The parser reads f^{-1}(x) as 1/f(x)."""
_POWER_OF_T = re.compile(r"(?P<matrix>\\end\{[a-z]*matrix\}\s*)?\^\s*(?:T(?![A-Za-z])|\{\s*T\s*\})")
"""The parser drops ^T unless it follows a matrix: 2^T would be 2."""
_REPEATING = re.compile(r"(?<![\d_])(\d*)\.(\d*)\\overline\{(\d+)\}")
_DECIMAL = re.compile(r"(?<![\d_])(\d*)\.(\d+)(?!\d)")
_MIXED = re.compile(r"(?<![\d.\\^_{}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_SLASH = re.compile(r"(?<![\d./^_])(\d+) (\d+)/(\d+)(?![\d.])")
_THOUSANDS = re.compile(r"(?<![\d,])(\d{1,3}(?:,\d{3})+)(?![\d,])")


def to_latex(text: str) -> str:
    """Convert a cleaned text to the parser's notation."""
    text = _PRIMED.sub(lambda m: f"{m.group(1)}_{{prime{len(m.group(2))}}}", text.replace(r"^{\prime}", "'"))
    text = in_base_ten(_INVERSE.sub(r"\1_{inverse}", text))
    text = _POWER_OF_T.sub(lambda m: m.group() if m.group("matrix") else "^{1 \\cdot T}", text)
    for counts in _COUNTS:
        text = counts.sub(_as_count, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _THOUSANDS.sub(lambda m: m.group(1).replace(",", ""), text)
    text = _DECIMAL.sub(_as_fraction, _REPEATING.sub(_as_repeating, text))
    text = with_fractions(_MIXED_SLASH.sub(r"(\1+\\frac{\2}{\3})", text))
    return _MIXED.sub(_as_sum, text)


def _as_fraction(match: re.Match[str]) -> str:
    whole, decimals = match.groups()
    return r"{\frac{" + str(int(whole + decimals)) + "}{1" + "0" * len(decimals) + "}}"


def _as_count(match: re.Match[str]) -> str:
    """C(5,2) and P(5,2), the numbers of combinations and permutations; but C(3,4) is a point, P(n,k) any function."""
    of, chosen, letter = match.group("of", "chosen", "letter")
    if of.isdecimal() and chosen.isdecimal():
        if int(of) < int(chosen):
            return match.group()
    elif letter != "C":
        return match.group()
    return rf"\binom{{{of}}}{{{chosen}}}" if letter == "C" else rf"\frac{{{of}!}}{{({of}-{chosen})!}}"


def _as_repeating(match: re.Match[str]) -> str:
    value = repeating(*match.groups())
    return rf"{{\frac{{{value.numerator}}}{{{value.denominator}}}}}"


def _as_sum(match: re.Match[str]) -> str:
    r"""3\frac{1}{2} is three and a half; 3\frac{5}{2} is a product."""
    whole, over, under = match.groups()
    if 0 < int(over) < int(under):
        return rf"({whole}+\frac{{{over}}}{{{under}}})"
    return rf"{whole}\cdot\frac{{{over}}}{{{under}}}"
