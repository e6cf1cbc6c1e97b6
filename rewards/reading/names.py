r"""The left side of an equation → whether it names a value or is an expression with unknowns.

`E[X] = 3`, `V_1 : V_2 = 3 : 5`, `AB/CD = 2` and `\angle ABC = 40^\circ` state their right sides. `x + y = 5` states
its right side only if the problem asks for a value; as a reference it is an equation, which 5 does not answer.
"""

from __future__ import annotations

import re

_LETTER = (
    r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|omega|phi|rho|tau|epsilon|Delta|ell|varphi|chi|Phi"
    r"|Omega|Gamma|eta|kappa|nu|xi|psi)(?![A-Za-z])|\\math(?:bb|cal|frak|scr)\s*\{?[A-Z]\}?|\{[A-Za-z]\})"
)
_SUBSCRIPT = r"(?:_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?[A-Za-z]+|\w))?"
_SYMBOL = rf"{_LETTER}{_SUBSCRIPT}'*(?:\^\s*(?:\{{\s*-1\s*\}}|\{{?\\prime\}}?|\*|\{{\(\d\)\}}))?{_SUBSCRIPT}"
_INSIDE = r"(?:[^()\[\]]|\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\])*"
_ARGUMENTS = rf"(?:\(\s*{_INSIDE}\)|\[\s*{_INSIDE}\])"
_CALL = (
    rf"(?:{_SYMBOL}|\\Pr|\\(?:det|dim|deg|ker|arg)|\\operatorname\s*\*?\s*\{{[A-Za-z]+\}}{_SUBSCRIPT}|\\text\s*\{{[A-Za-z]+\}}"
    rf"|\({_SYMBOL}\s*\\circ\s*{_SYMBOL}\))\s*{_ARGUMENTS}"
)
_DRAWN = (
    r"(?:\\(?:angle|triangle|overline|overrightarrow|vec|widehat|hat|bar|measuredangle|overset\{\\frown\}"
    r"|widetilde|tilde)\s*\{?[A-Za-z ]{1,6}\}?|m\s*\\angle\s*[A-Z]{1,3}|\[[A-Z]{3,6}\]"
    rf"|\\\|\s*(?:{_SYMBOL}|\\vec\s*\{{?[a-z]\}}?|\{{[a-z]\}})\s*\\\|)"
)
_SEGMENT = rf"(?:[A-Z]'?_?\d?){{2,6}}(?:\^\s*\{{?2\}}?)?|\|\s*[A-Z]{{2}}\s*\||{_DRAWN}|{_CALL}|{_SYMBOL}"
_OF = (
    r"\\(?:sin|cos|tan|cot|sec|csc|arg|det|dim|deg|gcd|lcm|max|min|log|ln|lim|sup|inf|Re|Im)(?![A-Za-z])\s*"
    rf"(?:_\s*\{{[^{{}}]*\}})?(?:\^\s*\{{?\d\}}?)?\s*(?:\d?(?:{_DRAWN}|\\?angle\s*[A-Z]{{1,3}}|{_CALL}|{_SYMBOL})"
    rf"|\(\s*\d?{_SYMBOL}(?:\s*[-+,]\s*{_SYMBOL})*\)|\\\{{[^{{}}]*\}})"
)
_TEXTS = rf"\\text\s*\{{[^{{}}]*\}}{_SUBSCRIPT}(?:\s*(?:{_SEGMENT}))?|[A-Z][a-z]+(?: [A-Za-z]+){{0,3}}|\\#\s*{_SYMBOL}"
_SIZE = (
    rf"\|\s*{_DRAWN}\s*\|" + r"|\|\s*(?:[A-Z](?:_\w)?|[A-Z]{2}|\\vec\s*\{?[a-z]\}?|[A-Z]\s*\\(?:cup|cap)\s*[A-Z])\s*\|"
)
_QUOTIENT = (
    rf"(?:{_SEGMENT})(?:\s*[:/]\s*(?:{_SEGMENT})){{1,4}}"
    rf"|\\frac\s*\{{\s*(?:{_SEGMENT})\s*\}}\s*\{{\s*(?:{_SEGMENT})\s*\}}"
)
_DERIVATIVE = r"\\frac\s*\{\s*(?:d|\\partial)\s*[a-z]?\s*\}\s*\{\s*(?:d|\\partial)\s*[a-z]\s*\}"
_TUPLE = rf"\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL}){{0,5}}\s*\)"
_DOT = rf"{_DRAWN}\s*\\(?:cdot|times)\s*{_DRAWN}"
_VARIANCE = r"\\sigma\s*\^\s*\{?2\}?"
_ONE = re.compile(
    rf"\s*(?:{_SYMBOL}|{_CALL}|{_SEGMENT}|{_OF}|{_TEXTS}|{_SIZE}|{_QUOTIENT}|{_DERIVATIVE}|{_TUPLE}|{_DOT}|{_VARIANCE}|\\(?:max|min))\s*"
)
_SEVERAL = re.compile(
    rf"\s*(?:[-+]?\s*(?:{_SEGMENT})(?:\s*(?:[-+]|\\cdot|\\times)?\s*(?:{_SEGMENT})){{1,4}}"
    rf"|\|\s*{_SYMBOL}(?:\s*[-+]?\s*{_SYMBOL}){{0,2}}\s*\||\\l(?:floor|ceil)\s*{_SYMBOL}\s*\\r(?:floor|ceil))\s*"
)
_POWER_SUM = re.compile(r"\s*[A-Za-z](?:\^\{?\d\}?)?(?:\s*\+?\s*[A-Za-z](?:\^\{?\d\}?)?){1,4}\s*")
_TERM = re.compile(r"[A-Za-z](?:\^\{?\d\}?)?")
_VARIABLE = r"(?:[a-z]|\\[a-z]+)"
"""Lower case only: with a capital letter, as in P(A) = 0.5, it is a probability or a mean."""
BOUND = re.compile(
    rf"(?P<head>{_SYMBOL})\s*\((?P<letters>\s*{_VARIABLE}(?:\s*,\s*{_VARIABLE})*\s*)\)"
    r"|(?P<sequence>[A-Za-z])_\{?(?P<index>[i-nrst])\}?"
)
"""f(x), f(x, y) and a_n: a function or a sequence, and the letters that it binds on the right side."""
INDEXED = re.compile(r"(?P<letter>[A-Za-z]|\\(?:lambda|alpha|beta|theta))_\{?(?P<index>\d+|\d(?:,\d)+)\}?")


def names_one(text: str) -> bool:
    """Whether a side by itself names one value, so that 5 answers a reference `side = 5`."""
    return _ONE.fullmatch(text) is not None


def names_value(text: str) -> bool:
    """Whether an answer `side = 5` may mean 5: the side is a name, or a sum or product of unknowns that the problem may
    ask for."""
    return names_one(text) or _SEVERAL.fullmatch(text) is not None or _is_power_sum(text)


def _is_power_sum(text: str) -> bool:
    """Whether a side is like x^2 + y^2 or x^2 y, which are one value of several unknowns; x^2 = 5 and x^2 + y = 5 are
    equations."""
    if _POWER_SUM.fullmatch(text) is None or len(set(re.findall(r"[A-Za-z]", text))) < 2:
        return False
    return "+" not in text or len({term.group()[1:].strip("^{}") for term in _TERM.finditer(text)}) == 1


def bound_letters(text: str) -> tuple[str, tuple[str, ...]] | None:
    """f(x, y) → ("f", ("x", "y")), a_n → ("a_", ("n",)); None if the letters are not all different."""
    match = BOUND.fullmatch(text.strip())
    if match is None:
        return None
    if match.group("sequence"):
        return match.group("sequence") + "_", (match.group("index"),)
    letters = tuple(letter.strip() for letter in match.group("letters").split(","))
    return (match.group("head").replace(" ", ""), letters) if len(set(letters)) == len(letters) else None
