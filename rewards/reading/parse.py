"""An expression as text → a sympy object, by math-verify's parser. Nothing is evaluated here."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify.grader import should_treat_as_complex
from sympy.core.function import AppliedUndef

from datafiles.text import first_line
from rewards.reading.latex import to_latex

MAX_NODES = 600
MAX_LATEX_CHARS = 1_000

_CONVERSION = ConversionConfig(lowercase_symbols=False)
_FACTORIAL_OF_FACTORIAL = re.compile(r"!\s*[)\]}]\s*!")
_MISREAD = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r"'", "a prime that the parser would drop"),
        (r"(?<![\d_^])\d+ +\d", "two numbers side by side"),  # 3 5 would be 3 + 5, as with 3 1/2
        (r"(?<![\w^])\d+\s*_", "a number with an index that is no base"),  # the parser drops the index
        (r"%", "a percent sign that belongs to no number"),  # the parser drops it
        (r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp)\s*_\{prime", "a function with a prime"),
        (
            r"(?<![\\A-Za-z_^{])(?!(?<=\d)[eE])[A-Za-z]\d",
            "a letter before a number",
        ),  # x2 is x^2 or x_2, and 2x to the parser
        (r"\^\s*\{[^{}]*\}\s*\^", "a power of a power without brackets"),  # e^x^2 is e^(x^2) to its writer
        (r"\\(?:gcd|lcm)(?![A-Za-z])[^\\]*?[A-Za-z]", "a greatest common divisor of unknowns"),  # coprime to sympy
    )
)
"""Patterns that the parser would misread, and why each is refused."""
_WORD = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:(?:[\s{}()|]|\\(?!cdot|times)[a-z]+)*\d|\s+[A-Za-z]{2})|\(\s*[A-Za-z][A-Za-z ]+\)"
)
"""Letters that are words: before a number, several words, or alone in brackets."""

Expr = Any  # sympy is not annotated


class Unparsed(ValueError):
    """The parser does not understand the text as mathematics."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """The sympy object of a cleaned expression."""
    latex = to_latex(text)
    for pattern, why in _MISREAD:
        if pattern.search(latex):
            raise Unparsed(why)
    if len(latex) > MAX_LATEX_CHARS:
        raise Unparsed(f"longer than {MAX_LATEX_CHARS} characters")
    try:
        parsed = latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=True,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - the parser raises bare Exception for every syntax error
        raise Unparsed(first_line(error)) from None
    if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
        raise Unparsed(f"parsed to {type(parsed).__name__}")
    if sum(1 for _ in itertools.islice(sympy.preorder_traversal(parsed), MAX_NODES + 1)) > MAX_NODES:
        raise Unparsed("too large an expression")
    if (
        "0" in latex
        and _WORD.search(latex)
        and any(_is_zero_of_words(node) for node in sympy.preorder_traversal(parsed))
    ):
        raise Unparsed("words beside a zero")
    if isinstance(parsed, sympy.FiniteSet) and len(parsed.args) == 1 and r"\{" not in latex:
        parsed = parsed.args[0]  # the parser reads the braces of {\frac{25}{10}} as a set
    if "!!" in latex:
        parsed = _with_double_factorials(parsed, latex)
    try:
        return parsed.subs({symbol: sympy.I for symbol in parsed.free_symbols if symbol.name == "i"})
    except TypeError as error:  # 1 ≤ i: complex numbers have no order
        raise Unparsed(str(error)) from None


def _is_zero_of_words(node: Expr) -> bool:
    """Whether a node is a product of several letters and 0, as "not 0" and "0 (wrong)" are read."""
    if not isinstance(node, sympy.Mul) or sympy.S.Zero not in _factors(node):
        return False
    return sum(len(symbol.name) for symbol in node.free_symbols) > 1


def _factors(product: Expr) -> list[Expr]:
    return [factor for part in product.args for factor in (_factors(part) if isinstance(part, sympy.Mul) else [part])]


def _with_double_factorials(parsed: Expr, latex: str) -> Expr:
    """Repair 7!!, which the parser reads as (7!)!. It stays unevaluated, because nothing is evaluated here."""
    if "!!!" in latex or _FACTORIAL_OF_FACTORIAL.search(latex):
        raise Unparsed("factorials of several kinds")
    return parsed.replace(
        lambda node: isinstance(node, sympy.factorial) and isinstance(node.args[0], sympy.factorial),
        lambda node: sympy.factorial2(node.args[0].args[0], evaluate=False),
    )


def is_scalar(expression: Expr) -> bool:
    """Whether an object is a number or a function of numbers, not a matrix, a set or a relation."""
    return isinstance(expression, sympy.Expr) and not isinstance(expression, sympy.MatrixExpr | sympy.MatrixBase)


def is_closed(text: str) -> bool:
    """Whether a text is an expression without variables."""
    try:
        expression = parse(text)
    except Unparsed:
        return False
    return is_scalar(expression) and not expression.free_symbols and not expression.atoms(AppliedUndef)
