r"""A reference → completions that state it in other forms, and completions that are wrong.

Each rule is a function from a reference to a completion, or to None if it does not apply, and is listed in a table. The
rules know nothing about the verifier: the completions they write are right, or wrong, by construction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d*\.\d+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}|(-?)(\d+)/(\d+)")
_ROOT = re.compile(r"(\d+)\s*\\sqrt\{(\d+)\}")
_PAIR = re.compile(r"\(([^,()\[\]]+),([^,()\[\]]+)\)")
_INTERVAL = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])")
_NAMED = re.compile(r"([a-zA-Z](?:\([a-z]\))?)\s*=\s*([^=<>,]+)")
_UNIT = re.compile(r"(-?[\d.]+)\s*\\text\{ ?(cm|m|km|inches|feet|minutes|hours|square units|units)\}(.*)")
_OTHER_UNIT = {
    "cm": "km", "m": "cm", "km": "m", "inches": "feet", "feet": "inches", "minutes": "hours", "hours": "minutes",
}  # fmt: skip
_SYMBOLS = (
    (r"\\pi(?![a-z])", "π"), (r"\\infty(?![a-z])", "∞"), (r"\\cup(?![a-z])", "∪"), (r"\\leq?(?![a-z])", "≤"),
    (r"\\geq?(?![a-z])", "≥"), (r"\\sqrt\{(\d+)\}", r"√\1"), (r"\^\{?\\circ\}?", "°"), (r"\^2(?!\d)", "²"),
    (r"-(?=\d)", "−"),
)  # fmt: skip

Form = Callable[[str], str | None]


def value(reference: str) -> Fraction | None:
    """The value of a reference that is a single plain number, otherwise None."""
    if _INTEGER.fullmatch(reference) or _DECIMAL.fullmatch(reference):
        return Fraction(reference)
    match = _FRACTION.fullmatch(reference)
    if match is None:
        return None
    sign, over, under = (group for group in match.groups() if group is not None)
    return Fraction(f"{sign}{over}") / int(under) if int(under) else None


def pieces(text: str, at: str) -> list[str]:
    """Split the text at the characters `at` that are outside all brackets."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == at and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [piece.strip() for piece in found]


def is_expression(text: str) -> bool:
    """Whether the text is a single mathematical value, as opposed to a list, a relation, a set, words or a unit."""
    return not re.search(
        r"[,=<>:;|%]|\\(?:text|le|ge|ne|in|cup|cap|pm|mp|begin|mbox|\{|circ|to|equiv|mathbb|infty|\$|ldots)|^[A-Z]",
        text,
    )


def terms(text: str) -> list[str] | None:
    """The terms of a sum that has only plus signs, at least two, or None."""
    found = pieces(text, "+")
    plain = is_expression(text) and len(found) > 1 and all(found) and all(len(pieces(t, "-")) == 1 for t in found)
    return found if plain else None


def members(text: str) -> list[str] | None:
    """The members of a list of distinct values, without brackets or in braces, or None."""
    inside = text[2:-2] if text.startswith(r"\{") and text.endswith(r"\}") else text
    if re.search(r"\\(?:text|pm|ldots|infty|mid|begin|[,!;])|[|=<>:]|\d,\d{3}(?!\d)", inside):
        return None
    found = pieces(inside, ",")
    return found if 1 < len(found) == len(set(found)) and all(found) else None


def box(content: str, after: str = ".") -> str:
    return f"So the answer is $\\boxed{{{content}}}${after}"


# -- the same answer in other forms ------------------------------------------------------------------------


def as_decimal(reference: str) -> str | None:
    number = value(reference)
    if number is None or number.denominator == 1 or 10**8 % number.denominator:
        return None
    digits = f"{abs(number.numerator) * 10**8 // number.denominator:09d}"
    return box(f"{'-' if number < 0 else ''}{digits[:-8]}.{digits[-8:].rstrip('0')}")


def as_fraction(reference: str) -> str | None:
    number = value(reference)
    return box(rf"\frac{{{3 * number.numerator}}}{{{3 * number.denominator}}}") if number is not None else None


def with_separators(reference: str) -> str | None:
    number = value(reference)
    if number is None or number.denominator != 1 or abs(number) < 1000:
        return None
    return box(f"{int(number):,}".replace(",", "{,}"))


def scientific(reference: str) -> str | None:
    number = value(reference)
    if number is None or number.denominator != 1 or abs(number) < 1000:
        return None
    digits = str(abs(int(number)))
    return box(rf"{'-' if number < 0 else ''}{digits[0]}.{digits[1:]} \times 10^{{{len(digits) - 1}}}")


def as_product(reference: str) -> str | None:
    number = value(reference)
    return box(rf"2 \cdot {int(number) // 2}") if number is not None and number > 2 and number % 2 == 0 else None


def spaced(reference: str) -> str | None:
    if r"\text" in reference or re.search(r"\d,(?:\\!)?\d{3}(?!\d)", reference):
        return None
    changed = re.sub(r"\s*(?<!\\)([+,])\s*", r"\\, \1 \\ ", reference)
    return box(changed) if changed != reference else None


def other_commands(reference: str) -> str | None:
    changed = reference.replace(r"\frac", r"\dfrac").replace("pmatrix", "bmatrix").replace(r"\le ", r"\leqslant ")
    return box(changed) if changed != reference else None


def sized_brackets(reference: str) -> str | None:
    if not re.search(r"(?<!\\)[(\[]", reference) or r"\left" in reference or r"\big" in reference:
        return None
    return box(re.sub(r"(?<!\\)([)\]])", r"\\right\1", re.sub(r"(?<!\\)([(\[])", r"\\left\1", reference)))


def in_unicode(reference: str) -> str | None:
    changed = reference
    for pattern, replacement in _SYMBOLS:
        changed = re.sub(pattern, replacement, changed)
    return box(changed) if changed != reference else None


def with_over(reference: str) -> str | None:
    changed = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"{\1 \\over \2}", reference)
    return box(changed) if changed != reference else None


def decimals_in_bounds(reference: str) -> str | None:
    """Replace fractions that have a short decimal form, within the rest of the reference."""

    def decimal(match: re.Match[str]) -> str:
        number = Fraction(int(match.group(1)), int(match.group(2)) or 1)
        return f"{float(number)}" if 1000 % number.denominator == 0 < number.denominator > 1 else match.group()

    if not re.search(r"[,<>]|\\[lg]eq?(?![a-z])", reference):
        return None
    changed = re.sub(r"(?<![\w}])\\frac\{(\d+)\}\{(\d+)\}(?=\s*(?:[,)\]<>]|\\[lg]e|$))", decimal, reference)
    return box(changed) if changed != reference else None


def equation_doubled(reference: str) -> str | None:
    sides = pieces(reference, "=")
    if len(sides) != 2 or not all(map(is_expression, sides)) or not re.search(r"[-+^]", sides[0]):
        return None
    return box(f"2({sides[1]}) = 2({sides[0]})")


def bound_letter(reference: str) -> str | None:
    match = re.fullmatch(r"([a-zA-Z])\(x\) = ([-+0-9 x^{}()]+)", reference)
    return box(f"{match.group(1)}(t) = {match.group(2).replace('x', 't')}") if match else None


def under_one_root(reference: str) -> str | None:
    match = _ROOT.fullmatch(reference)
    return box(rf"\sqrt{{{int(match.group(1)) ** 2 * int(match.group(2))}}}") if match else None


def terms_reversed(reference: str) -> str | None:
    found = terms(reference)
    return box(" + ".join(reversed(found))) if found else None


def members_reversed(reference: str) -> str | None:
    found = members(reference)
    return box(r" \text{ and } ".join([", ".join(reversed(found[1:])), found[0]])) if found else None


def members_in_braces(reference: str) -> str | None:
    found = members(reference)
    return box(r"\{" + "; ".join(found) + r"\}") if found and not reference.startswith(r"\{") else None


def members_in_boxes(reference: str) -> str | None:
    found = members(reference)
    return " and ".join(rf"$\boxed{{{member}}}$" for member in found) if found and len(found) < 4 else None


def named(reference: str) -> str | None:
    return box(f"n = {reference}") if value(reference) is not None else None


def sides_exchanged(reference: str) -> str | None:
    match = _NAMED.fullmatch(reference)
    return box(f"{match.group(2).strip()} = {match.group(1)}") if match else None


def value_alone(reference: str) -> str | None:
    match = _NAMED.fullmatch(reference)
    return box(match.group(2)) if match and is_expression(match.group(2)) else None


def unit_outside(reference: str) -> str | None:
    match = _UNIT.fullmatch(reference)
    return box(match.group(1), f" {match.group(2)}.") if match else None


def unit_added(reference: str) -> str | None:
    return box(rf"{reference} \text{{ cm}}") if value(reference) is not None else None


def as_inequality(reference: str) -> str | None:
    match = _INTERVAL.fullmatch(reference)
    if match is None or (match.group(1) + match.group(4) in {"()", "[]"} and r"\infty" not in reference):
        return None  # may be a point or a vector
    left, low, high, right = (group.strip() for group in match.groups())
    below = "" if low == r"-\infty" else f"{low} {'<' if left == '(' else chr(92) + 'le'} "
    above = "" if high == r"\infty" else f" {'<' if right == ')' else chr(92) + 'le'} {high}"
    return box(f"{below}x{above}") if below or above else None


def emphasised(reference: str) -> str | None:
    return (
        box(rf"\mathbf{{{reference}}}") if value(reference) is not None else f"**Answer:** $$\\fbox{{${reference}$}}$$"
    )


def wrapped(reference: str) -> str | None:
    if reference.endswith("."):
        return None
    return f"Therefore\n\\[\n\\boxed{{\\displaystyle {reference}.}}\n\\]"


def boxed_twice(reference: str) -> str | None:
    return f"$$\\boxed{{\\boxed{{{reference}}}}}$$"


def after_a_thought(reference: str) -> str | None:
    return f"<think>\nMaybe \\boxed{{12345}}? No.\n</think>\n\nThe answer is \\boxed{{{reference}}}."


CORRECT: dict[str, Form] = {
    form.__name__: form
    for form in (
        with_over, decimals_in_bounds, equation_doubled, bound_letter, as_decimal, as_fraction,
        with_separators, scientific, as_product, spaced, other_commands, sized_brackets,
        in_unicode, under_one_root, terms_reversed, members_reversed, members_in_braces, members_in_boxes, named,
        sides_exchanged, value_alone, unit_outside, unit_added, as_inequality, emphasised, wrapped, boxed_twice,
        after_a_thought,
    )
}  # fmt: skip


# -- wrong answers that look like it -----------------------------------------------------------------------


def negated(reference: str) -> str | None:
    number = value(reference)
    if number is None:
        return box(f"-({reference})") if is_expression(reference) and re.search(r"[1-9]", reference) else None
    return box(reference[1:] if reference.startswith("-") else f"-{reference}") if number else None


def another_digit(reference: str) -> str | None:
    if value(reference) is None:
        return None
    digits = list(re.finditer(r"\d", reference))
    last = digits[-1]
    changed = f"{reference[: last.start()]}{(int(last.group()) + 1) % 10}{reference[last.end() :]}"
    return box(changed) if value(changed) not in (None, value(reference)) else None


def one_more(reference: str) -> str | None:
    return box(f"{reference} + 1") if is_expression(reference) else None


def upside_down(reference: str) -> str | None:
    number = value(reference)
    if number is None or abs(number) in (0, 1):
        return None
    return box(rf"\frac{{{number.denominator}}}{{{number.numerator}}}")


def rounded(reference: str) -> str | None:
    number = value(reference)
    return (
        box(f"{float(number):.3f}")
        if number is not None and 1000 % number.denominator and abs(number) < 10**6
        else None
    )


def a_tenth_more(reference: str) -> str | None:
    number = value(reference)
    return box(f"{reference}.1") if number is not None and _INTEGER.fullmatch(reference) else None


def member_missing(reference: str) -> str | None:
    found = members(reference)
    return box(", ".join(found[:-1])) if found else None


def member_too_many(reference: str) -> str | None:
    found = members(reference)
    return box(", ".join([*found, "987654"])) if found else None


def bound_exchanged(reference: str) -> str | None:
    match = _INTERVAL.fullmatch(reference)
    if match is None or match.group(2).strip() == r"-\infty":
        return None
    return box(("[" if match.group(1) == "(" else "(") + reference[1:])


def pair_exchanged(reference: str) -> str | None:
    match = _PAIR.fullmatch(reference)
    if match is None or match.group(1).strip() == match.group(2).strip():
        return None
    return box(f"({match.group(2)},{match.group(1)})")


def other_unit(reference: str) -> str | None:
    match = _UNIT.fullmatch(reference)
    if match is None or match.group(2) not in _OTHER_UNIT:
        return None
    return box(rf"{match.group(1)} \text{{ {_OTHER_UNIT[match.group(2)]}}}{match.group(3)}")


def two_answers(reference: str) -> str | None:
    return box(rf"{reference} \text{{ or }} 987654")


def denied(reference: str) -> str | None:
    return f"The answer is not $\\boxed{{{reference}}}$."


def taken_back(reference: str) -> str | None:
    return box(reference, ". Wait, that is wrong.")


def only_thought(reference: str) -> str | None:
    return f"<think>\nSo it is \\boxed{{{reference}}}, but let me check"


def an_inequality(reference: str) -> str | None:
    return box(rf"x > {reference}") if value(reference) is not None else None


WRONG: dict[str, Form] = {
    form.__name__: form
    for form in (
        negated, another_digit, one_more, upside_down, rounded, a_tenth_more, member_missing, member_too_many,
        bound_exchanged, pair_exchanged, other_unit, an_inequality, two_answers, denied, taken_back, only_thought,
    )
}  # fmt: skip
