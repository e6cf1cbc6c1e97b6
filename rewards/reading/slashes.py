r"""A fraction written inline → \frac: 1/2x is half of x, and 1/(2x) needs its brackets.

The parser takes everything after a slash as the divisor. If both sides are numbers, people mean the fraction of the
two, multiplied by what follows: 3/4x^2, -1/2+\sqrt{3}/2i, 1/\sqrt{2\pi}e^{-x}. The slash in x/2y is left alone.
"""

from __future__ import annotations

import re

_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_NUMBER = (
    rf"(?>(?:\d++|\{{\\frac\{{\d++\}}\{{\d++\}}\}}|\\sqrt\s*(?:\[\d+\])?{_BRACED}|\\frac{_BRACED}{_BRACED}"
    rf"|\\pi(?![A-Za-z])|\([^()]*\))(?:\s*\^\s*(?:{_BRACED}|\d))?+)"
)
"""Unambiguous and possessive, so that a long text causes no catastrophic backtracking."""
_FRACTION = re.compile(
    rf"(?<!\d)(?<!\d )(?P<over>{_NUMBER}(?>\s*(?:\\cdot\s*)?{_NUMBER})*+)\s*/\s*(?P<under>{_NUMBER})(?!\s*[\d^!/_'])"
)
_CONTINUED = re.compile(r"(?:(?<![A-Za-z\\])[A-Za-z]+|[)}\]!/^_|'])\s*$")
"""The text before belongs to the dividend, as x in x3/2y and x^ in x^3/2y."""
_COMMAND = re.compile(r"\\[A-Za-z]+\s*$")
r"""A command before a bracket may be a function of its content: \sin(2)/3."""
_UNKNOWN = re.compile(r"(?!\\(?:sqrt|frac|pi|cdot)(?![A-Za-z]))\\[A-Za-z]+|(?<![A-Za-z\\])[A-Za-z]")


def with_fractions(latex: str) -> str:
    r"""Replace every slash between numbers by \frac: 1/2 → \frac{1}{2}."""
    return _FRACTION.sub(_fraction, latex) if "/" in latex else latex


def _fraction(match: re.Match[str]) -> str:
    over, under = match.group("over"), match.group("under")
    before = match.string[: match.start()]
    if _UNKNOWN.search(over + " " + under) or _CONTINUED.search(before) or (over[0] == "(" and _COMMAND.search(before)):
        return match.group()
    return rf"\frac{{{over}}}{{{under}}}"
