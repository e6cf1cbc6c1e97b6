"""Single values: numbers, lettered choices, words and expressions, compared as LaTeX and as exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.equality import constants, mathematics
from rewards.equality.rule import Equal
from rewards.reading.numbers import ROUNDED_DIGITS, rounds_to, same_number
from rewards.reading.parse import Unparsed
from rewards.reading.phrases import fold
from rewards.reading.shapes import Choice, Exact, Expression, Items, Node, Words
from rewards.spelling.clean import fingerprint

_POINT = re.compile(r"[CP]\s*\([^()]*\)")
"""May be the number of combinations or, compared with another such text, a point: C(5,2) is 10, and not C(5,3)."""
_RUN = re.compile(r"[A-J]{2,10}")


def numbers(reference: Node, answer: Node, equal: Equal) -> bool | None:
    if isinstance(reference, Exact) and isinstance(answer, Exact):
        return same_number(reference.number, answer.number)
    return None


def choices(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """(C) is C; "C. 42" is C, and 42 if the reference is not a letter; but not "C. 43"."""
    if not isinstance(reference, Choice) and not isinstance(answer, Choice):
        return None
    one, other = _letter(reference), _letter(answer)
    if one is not None and other is not None:
        return one == other and not _contents_differ(reference, answer)
    if isinstance(answer, Choice) and answer.content is not None:
        return equal(reference, answer.content)
    if isinstance(reference, Choice) and reference.content is not None:
        return equal(reference.content, answer)
    return False


def _contents_differ(reference: Node, answer: Node) -> bool:
    """Whether both letters come with an integer, and these differ. Other contents may be the same in another form."""
    contents = [node.content for node in (reference, answer) if isinstance(node, Choice)]
    values = [each.number.value for each in contents if isinstance(each, Exact) and each.number.value.denominator == 1]
    return len(values) == 2 and values[0] != values[1]


def choices_in_a_row(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """AC is A, C, only in this order, because BAC may be a ranking."""
    for run, several in ((reference, answer), (answer, reference)):
        if isinstance(several, Items) and several.joined_by != "or" and isinstance(run, Expression | Words):
            letters = run.latex if isinstance(run, Expression) else run.text.upper()
            if _RUN.fullmatch(letters) and [_letter(element) for element in several.elements] == list(letters):
                return True
    return None


def _letter(node: Node) -> str | None:
    if isinstance(node, Choice):
        return node.letter
    if isinstance(node, Expression) and len(node.latex) == 1 and node.latex.isalpha():
        return node.latex.upper()
    return None


def texts(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """Words agree if they fold to the same text. Words never equal mathematics, except for a short product."""
    if isinstance(reference, Words) and isinstance(answer, Words):
        return reference.text == answer.text or reference.text.replace(" ", "") == answer.text.replace(" ", "")
    if isinstance(reference, Words) or isinstance(answer, Words):
        word, other = (reference, answer) if isinstance(reference, Words) else (answer, reference)
        assert isinstance(word, Words)
        return isinstance(other, Expression) and fold(other.latex) == word.text
    return None


def expressions(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """The remaining kinds: numbers and expressions, compared by math-verify and by value."""
    one, other = latex_of(reference), latex_of(answer)
    if one is None or other is None:
        return False
    if _POINT.fullmatch(one) and _POINT.fullmatch(other):
        return fingerprint(one) == fingerprint(other)
    for exact, text in ((reference, other), (answer, one)):
        if isinstance(exact, Exact) and exact.number.digits:
            value, decimal = _value_of_text(text), exact.number
            if value is not None:
                return value == decimal.value or (decimal.digits >= ROUNDED_DIGITS and rounds_to(value, decimal))
    return same_expressions(one, other) or _same_up_to_constants(one, other)


def _same_up_to_constants(one: str, other: str) -> bool:
    try:
        return constants.same_up_to_constants(one, other)
    except Unparsed:
        return False


def same_expressions(one: str, other: str) -> bool:
    """Whether two expressions are equal. Text that the parser rejects equals only the same text."""
    if fingerprint(one) == fingerprint(other):
        return True
    try:
        return mathematics.same_expression(one, other)
    except Unparsed:
        return False


def latex_of(node: Node) -> str | None:
    """The LaTeX of a number or an expression; None for every other kind."""
    if isinstance(node, Expression):
        return node.latex
    if isinstance(node, Exact):
        value = node.number.value
        return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return None


def value_of(node: Node) -> Fraction | None:
    """The exact value of a number, or of a closed expression to the working precision."""
    if isinstance(node, Exact):
        return node.number.value
    return _value_of_text(node.latex) if isinstance(node, Expression) else None


def _value_of_text(text: str) -> Fraction | None:
    """The value of a closed expression; None if it has none or cannot be read."""
    try:
        return mathematics.value_of(text)
    except Unparsed:
        return None
