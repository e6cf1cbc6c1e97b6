r"""Cleaned answer text → LaTeX that math-verify's parser reads the way a person does.

People write 3*sqrt(5), 8pi, x^10 and \frac12; the parser wants \sqrt{5}, 8\pi, x^{10} and \frac{1}{2}.
Decimals become fractions, so that no float ever takes part in a comparison.
"""

from __future__ import annotations

import re

from rewards.reading.numbers import repeating
from rewards.reading.slashes import with_fractions

_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min|det|arg"
_GREEK = "alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|tau|pi|mu|infty"

_COUNT = r"(?:\d+|[nmkrN])(?:\s*[-+]\s*\d+)?"
_CHOSEN = (
    r"(?:\{\s*\}\s*|(?<![\w)\]}'!|])(?<![\w)\]}] ))"
    rf"[_^]\s*\{{?({_COUNT})\}}?\s*C\s*_\s*\{{?({_COUNT})\}}?"
)
"""_5C_2 and ^5C_2 with nothing before it: x^5C_2 is a product."""

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\*\*", "^"),
        (r"\\operatorname\s*\*?\s*\{\s*([A-Za-z]+)\s*\}", r"\\\1 "),
        (rf"\\text\s*\{{\s*({_FUNCTIONS}|i|e)\s*\}}", r"\\\1 "),
        (r"\\(i|e)(?![A-Za-z])", r" \1 "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt\s*\{", r"\\sqrt{"),
        (r"(?<![\\A-Za-z])sqrt\s*(\d+|[a-z])", r"\\sqrt{\1}"),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
        (r"\\lg(?![A-Za-z])", r"\\log_{10} "),
        # \log_23 is the logarithm of 3 to base 2, as TeX sets it; before a blank and an operand, \log_10 5, all of it.
        (r"\\log\s*_\s*(\d\d+)(?=\s+(?:[\dA-Za-z({]|\\(?:sqrt|frac|pi)))", r"\\log_{\1}"),
        (r"\\log\s*_\s*([\dA-Za-z])", r"\\log_{\1} "),
        (rf"(?<![\\A-Za-z])({_GREEK})(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\\pi", r"\\sqrt{\\pi}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\\[a-z]+)\s*(?=[\d{a-z])", r"\\frac{\1}"),
        (r"\\frac\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*(\d|[a-z]|\\[a-z]+)", r"\\frac\1{\2}"),
        (r"\\frac\s*([a-z\d])\s*([a-z\d])", r"\\frac{\1}{\2}"),
        (r"\\binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
        (_CHOSEN, r"\\binom{\1}{\2}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(\d\d+)", r"^{\1}"),
        (r"\^\s*([A-Za-z])", r"^{\1}"),
        (r"(?<![\\A-Za-z])e\^\{e\}", r"e^{1 \\cdot e}"),
        (r"\\(max|min|gcd)\s*\\\{(.*?)\\\}", r"\\\1(\2)"),
        (r"\^\s*-\s*(\d+)", r"^{-\1}"),
        (r"(\d)\s*\\div\s*", r"\1 / "),
        (r"\\%", ""),
        (r"(?<![_^A-Za-z\\\d.{])(\d+)\s*\(", r"\1 \\cdot ("),
        (r"(?<=[)\]])\s*(?=[\d(\\])(?!\\(?:cdot|times|div|le|ge|ne|in|cup|cap|pm|mp|to|right))", r" \\cdot "),
        (r"(?<=\d)\s*\^\\circ(?![A-Za-z])", r"^{\\circ}"),
        (r"\{\s*\}\s*_", "_"),
        (r"(\\end\{[a-z]*matrix\})\s*(\\begin)", r"\1 \\cdot \2"),
    )
)  # fmt: skip
_COMBINATIONS = re.compile(rf"(?<![A-Za-z\\])C\s*\(\s*({_COUNT})\s*,\s*({_COUNT})\s*\)")
_PRIMED = re.compile(r"([A-Za-z])('+)")
"""The parser drops primes, which would make f' and f the same."""
_REPEATING = re.compile(r"(?<![\d_])(\d*)\.(\d*)\\overline\{(\d+)\}")
_DECIMAL = re.compile(r"(?<![\d_])(\d*)\.(\d+)(?!\d)")
_MIXED = re.compile(r"(?<![\d.\\^_{}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_SLASH = re.compile(r"(?<![\d./^_])(\d+) (\d+)/(\d+)(?![\d.])")
_THOUSANDS = re.compile(r"(?<![\d,])(\d{1,3}(?:,\d{3})+)(?![\d,])")


def to_latex(text: str) -> str:
    """A cleaned text as the parser has to be given it."""
    text = _PRIMED.sub(lambda m: f"{m.group(1)}_{{prime{len(m.group(2))}}}", text.replace(r"^{\prime}", "'"))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _COMBINATIONS.sub(_as_binomial, text)
    text = _THOUSANDS.sub(lambda m: m.group(1).replace(",", ""), text)
    text = _DECIMAL.sub(_as_fraction, _REPEATING.sub(_as_repeating, text))
    text = with_fractions(_MIXED_SLASH.sub(r"(\1+\\frac{\2}{\3})", text))
    return _MIXED.sub(_as_sum, text)


def _as_fraction(match: re.Match[str]) -> str:
    whole, decimals = match.groups()
    return r"{\frac{" + str(int(whole + decimals)) + "}{1" + "0" * len(decimals) + "}}"


def _as_binomial(match: re.Match[str]) -> str:
    """C(5,2), the number of choices; C(3,4) is a point."""
    of, chosen = match.groups()
    if of.isdecimal() and chosen.isdecimal() and int(of) < int(chosen):
        return match.group()
    return rf"\binom{{{of}}}{{{chosen}}}"


def _as_repeating(match: re.Match[str]) -> str:
    value = repeating(*match.groups())
    return rf"{{\frac{{{value.numerator}}}{{{value.denominator}}}}}"


def _as_sum(match: re.Match[str]) -> str:
    r"""3\frac{1}{2} is three and a half; 3\frac{5}{2} is a product."""
    whole, over, under = match.groups()
    if 0 < int(over) < int(under):
        return rf"({whole}+\frac{{{over}}}{{{under}}})"
    return rf"{whole}\cdot\frac{{{over}}}{{{under}}}"
