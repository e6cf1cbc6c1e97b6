r"""A fraction written in one line → \frac: 1/2x is half of x, and 1/(2x) needs its brackets.

The parser takes all that follows a slash for the divisor. Where both sides are numbers, people mean the fraction of
the two, and it multiplies what follows: 3/4x^2, -1/2+\sqrt{3}/2i, 1/\sqrt{2\pi}e^{-x}. In x/2y it stays as it was.
"""

from __future__ import annotations

import re

_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_NUMBER = (
    rf"(?>(?:\d++|\{{\\frac\{{\d++\}}\{{\d++\}}\}}|\\sqrt\s*(?:\[\d+\])?{_BRACED}|\\frac{_BRACED}{_BRACED}"
    rf"|\\pi(?![A-Za-z])|\([^()]*\))(?:\s*\^\s*(?:{_BRACED}|\d))?+)"
)
"""No part of it can be read in two ways, so that a long text is not tried in all of them."""
_FRACTION = re.compile(
    rf"(?<!\d)(?<!\d )(?P<over>{_NUMBER}(?>\s*(?:\\cdot\s*)?{_NUMBER})*+)\s*/\s*(?P<under>{_NUMBER})(?!\s*[\d^!/_'])"
)
_CONTINUED = re.compile(r"(?:(?<![A-Za-z\\])[A-Za-z]+|[)}\]!/^_|'])\s*$")
"""What comes before belongs to the dividend, as x in x3/2y and x^ in x^3/2y."""
_COMMAND = re.compile(r"\\[A-Za-z]+\s*$")
r"""Before a bracket, it may be a function of what is in there: \sin(2)/3."""
_UNKNOWN = re.compile(r"(?!\\(?:sqrt|frac|pi|cdot)(?![A-Za-z]))\\[A-Za-z]+|(?<![A-Za-z\\])[A-Za-z]")


def with_fractions(latex: str) -> str:
    r"""The text with \frac{1}{2} for 1/2, and so for every slash between numbers."""
    return _FRACTION.sub(_fraction, latex) if "/" in latex else latex


def _fraction(match: re.Match[str]) -> str:
    over, under = match.group("over"), match.group("under")
    before = match.string[: match.start()]
    if _UNKNOWN.search(over + " " + under) or _CONTINUED.search(before) or (over[0] == "(" and _COMMAND.search(before)):
        return match.group()
    return rf"\frac{{{over}}}{{{under}}}"
