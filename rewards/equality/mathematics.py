"""Two expressions → equal or not. math-verify verifies; exact and 60-digit values cross-check.

math-verify compares rounded values, so to it 1e-7 equals 2e-7, and 1/2004! equals 1/2006!. Here rationals are
compared exactly and other values to 60 digits relative to their size, and agreement of numbers counts only
if the numbers are of everyday size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import sympy
from math_verify import verify
from sympy.core.function import AppliedUndef
from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction

from rewards.equality.breaks import points_in_pieces
from rewards.equality.defined import has_no_value, is_defined, is_evaluable
from rewards.reading.parse import Expr, Unparsed, is_scalar, parse

DIGITS = 60
AGREE = sympy.Float("1e-50", DIGITS)
EVERYDAY_DIGITS = 40
SMALL_NUMBER = 20
"""Double factorials whose arguments have no larger number than this have few digits at the sampled points."""

_UNEVALUATED = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
SYMPY_ERRORS = (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, KeyError, IndexError)
"""What sympy raises on expressions that make no sense to it. A bug of ours could raise these too, so the verdict's
detail keeps the text of the error."""


@lru_cache(maxsize=8192)
def same_expression(reference: str, answer: str) -> bool:
    """Whether two cleaned expressions are equal. Raises `Unparsed` if either cannot be read."""
    left, right = parsed_alike(reference, answer)
    try:
        return same(left, right)
    except SYMPY_ERRORS as error:
        raise Unparsed(f"{type(error).__name__}: {error}") from error


def parsed_alike(*texts: str) -> list[Expr]:
    """Parse several texts so that a letter is the same unknown in all: the parser takes the x of e^{ix} for real, and
    that of e^{i x} for complex. Letters beside a conjugate keep their kind."""
    parsed = [parse(text) for text in texts]
    if any(expression.has(sympy.conjugate) for expression in parsed):
        return parsed
    real = {symbol.name: symbol for expression in parsed for symbol in expression.free_symbols if symbol.is_real}
    return [
        expression.xreplace({letter: real.get(letter.name, letter) for letter in expression.free_symbols})
        for expression in parsed
    ]


def same(left: Expr, right: Expr) -> bool:
    """Whether two sympy objects are equal. Raises `SYMPY_ERRORS`, as sympy does, for objects that make no sense.

    Undefined objects equal nothing: 7/0 and 8/0 are not the same value. That is checked last, because few pairs get so
    far.
    """
    return _same_where_defined(left, right) and is_defined(left) and is_defined(right)


def _same_where_defined(left: Expr, right: Expr) -> bool:
    if left == right:
        return True
    if not is_evaluable(left) or not is_evaluable(right):
        return False
    if right.has(*_UNEVALUATED) and not left.has(*_UNEVALUATED):
        return False  # this restates the problem and does not answer it
    if is_scalar(left) != is_scalar(right):
        return False  # a set or relation instead of a value: other rules have already judged it
    if not is_scalar(left):
        return bool(verify(left, right, timeout_seconds=None))
    left, right = _as_numbers_and_symbols(left), _as_numbers_and_symbols(right)
    if has_no_value(left) or has_no_value(right):
        return False
    if left.is_Rational and right.is_Rational:
        return bool(left == right)
    if left.is_infinite or right.is_infinite or left.is_Boolean or right.is_Boolean:
        return bool(left == right)
    agreement = _agree(left, right)
    if agreement is None or (agreement and not _is_everyday(left, right)):
        return bool(sympy.simplify(left - right) == 0)
    return agreement


def value_of(text: str) -> Fraction | None:
    """The value of a closed real expression to `DIGITS` digits, or None."""
    expression = _closed(text)
    if expression is None:
        return None
    value = expression if expression.is_Rational else expression.evalf(DIGITS)
    if not (expression.is_Rational or (value.is_Float and value.is_finite)):
        return None
    rational = sympy.Rational(value)
    return Fraction(int(rational.p), int(rational.q))


def integer_of(text: str) -> int | None:
    """The value of a closed expression that is an integer with any number of digits, or None."""
    value = _closed(text)
    return int(value) if value is not None and value.is_Integer else None


def _closed(text: str) -> Expr | None:
    """An expression without unknowns, evaluated as far as it is exact, or None; also for 0x and "not 0", whose letters
    would vanish."""
    expression = parse(text)
    if not is_scalar(expression) or expression.free_symbols or not is_evaluable(expression):
        return None
    try:
        if not is_defined(expression):
            return None
        expression = _as_numbers_and_symbols(expression)
    except SYMPY_ERRORS as error:  # (1/2)!! has no value
        raise Unparsed(f"{type(error).__name__}: {error}") from error
    return None if expression.free_symbols or expression.has(*_UNEVALUATED) else expression


def _as_numbers_and_symbols(expression: Expr) -> Expr:
    """Evaluate what the parser left unevaluated, and replace f(x) by an unknown."""
    expression = expression.doit(deep=True) if not expression.has(*_UNEVALUATED) else expression
    expression = _with_real_roots(expression)
    functions = {call: sympy.Symbol(f"value_{call}", real=True) for call in expression.atoms(AppliedUndef)}
    return expression.xreplace(functions) if functions else expression


def _with_real_roots(expression: Expr) -> Expr:
    r"""Make odd roots of negative reals real, which is how people read \sqrt[3]{-8}, if nothing else is complex."""
    roots = {
        power: sympy.sign(power.base) ** power.exp.p * sympy.Abs(power.base) ** power.exp
        for power in expression.atoms(sympy.Pow)
        if power.exp.is_Rational
        and power.exp.q > 1
        and power.exp.q % 2
        and power.base.is_extended_real
        and not power.base.is_nonnegative
    }
    return expression.xreplace(roots) if roots and not expression.has(sympy.I) else expression


def is_constant(expression: Expr) -> bool:
    """Whether a real function has one value wherever it is defined, judged at the identity test's points and in
    [-1, 1]."""
    if not is_evaluable(expression):
        return False
    symbols = sorted(expression.free_symbols, key=str)
    points = [_rational_point(symbols, number) for number in range(RATIONAL_POINTS)]
    points += _points_near_zero(symbols)
    points += points_in_pieces((expression,), points[0])
    values = [_evaluate(expression.xreplace(point)) for point in points]
    real = [value for value in values if value is not None and value.is_real]
    return len(real) >= ENOUGH_POINTS and all(_close(value, real[0]) is not False for value in real)


def _is_everyday(*expressions: Expr) -> bool:
    """Whether no number in them is so long that different values could agree in all compared digits."""
    numbers = set().union(*(expression.atoms(sympy.Rational) for expression in expressions))
    largest = max((max(abs(number.p), number.q) for number in numbers), default=0)
    powers = set().union(*(expression.atoms(sympy.Pow) for expression in expressions))
    if largest > 10**EVERYDAY_DIGITS or any(abs(p.exp) > EVERYDAY_DIGITS for p in powers if p.exp.is_Rational):
        return False
    if any(expression.has(sympy.factorial2) for expression in expressions):
        return bool(largest <= SMALL_NUMBER)  # sympy proves nothing about these
    return not any(expression.has(sympy.factorial, sympy.gamma) for expression in expressions)


def _agree(left: Expr, right: Expr) -> bool | None:
    """Whether the values agree: once for closed expressions, at points otherwise. None if undecided."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    return _agree_at_points(left, right, symbols) if symbols else _close(_evaluate(left), _evaluate(right))


# -- the identity test -------------------------------------------------------------------------------------
#
# Whether two expressions are the same function is undecidable in general, and simplification is slow and often
# fails. The functions in answers are analytic nearly everywhere: two different ones agree on a set of measure
# zero, so agreement to 50 digits at a few points unrelated to the expressions is taken as identity. The points
# are fixed, so that a verdict never depends on chance.

_COORDINATES = (
    "37/16", "-53/23", "101/89", "-29/41", "13/7", "71/19", "-5/13", "97/43", "-17/31", "43/29", "7/61", "-83/37",
)  # fmt: skip
"""Values of both signs and of magnitude around one, whose denominators share no factor, so that nothing agrees by
accident."""
_STRIDE = 5
"""The distance to the next unknown's coordinate. It is coprime to the number of coordinates, so all differ."""
RATIONAL_POINTS = 6
INTEGER_POINTS = 4
"""The number of integer points: factorials and powers of negative numbers are often real only at integers."""
RATIO_POINTS = 5
ENOUGH_POINTS = 3
"""The number of points that must be decided; the others may be poles, or zeros of both."""

Point = dict[Expr, Expr]


def _rational_point(symbols: list[Expr], number: int) -> Point:
    """A value for every unknown. From the thirteenth unknown on, the coordinates repeat, shifted by one."""
    count = len(_COORDINATES)
    return {
        symbol: sympy.Rational(_COORDINATES[(number + _STRIDE * i) % count]) + i // count
        for i, symbol in enumerate(symbols)
    }


def _integer_point(symbols: list[Expr], number: int) -> Point:
    """A small positive integer for every unknown, different for up to five of them."""
    return {symbol: sympy.Integer(number + 3 + (2 * i) % 5) for i, symbol in enumerate(symbols)}


def _points(symbols: list[Expr], *, whole: bool) -> Iterator[Point]:
    for number in range(0 if whole else RATIONAL_POINTS):
        yield _rational_point(symbols, number)
    for number in range(INTEGER_POINTS):
        yield _integer_point(symbols, number)


def _points_near_zero(symbols: list[Expr]) -> Iterator[Point]:
    """Points at which \\ln(1-x) and \\arcsin x are real."""
    for number in range(len(_COORDINATES)):
        yield {symbol: value / 4 for symbol, value in _rational_point(symbols, number).items()}


def _agree_at_points(left: Expr, right: Expr, symbols: list[Expr]) -> bool | None:
    """The identity test. None if too few points decide.

    One disagreement between real values is final. Roots and logarithms of negative numbers have branches on
    which equal functions of a real unknown may differ, so complex values count only if there are too few real ones.
    """
    whole = left.has(sympy.factorial2) or right.has(sympy.factorial2)  # it has no values between integers
    at_real, at_complex = _outcomes(left, right, _points(symbols, whole=whole))
    if False in at_complex and not (_has_branches(left) or _has_branches(right)):
        return False  # e^{2\pi ix} is 1 only at integers
    if False in at_complex and len(at_real) < ENOUGH_POINTS:
        at_real += _outcomes(left, right, _points_near_zero(symbols))[0]
    if False in at_real:
        return False
    if at_real.count(True) >= ENOUGH_POINTS:
        return not _differ_in_a_piece(left, right, symbols)
    if False in at_complex:
        return False
    return True if at_real.count(True) + at_complex.count(True) >= ENOUGH_POINTS else None


def _outcomes(left: Expr, right: Expr, points: Iterator[Point]) -> tuple[list[bool | None], list[bool | None]]:
    """Whether the values agree at the points where both are real, up to the first disagreement, and at the others."""
    at_real: list[bool | None] = []
    at_complex: list[bool | None] = []
    for point in points:
        one, other = _evaluate(left.xreplace(point)), _evaluate(right.xreplace(point))
        if one is None or other is None:
            continue
        outcome = _close(one, other)
        if not (one.is_real and other.is_real):
            at_complex.append(outcome)
        else:
            at_real.append(outcome)
            if outcome is False:
                break
    return at_real, at_complex


def _has_branches(expression: Expr) -> bool:
    """Whether a complex value may depend on a choice: of roots, logarithms and powers, unlike e^{ix}."""
    return expression.has(sympy.log, InverseTrigonometricFunction) or any(
        power.exp.is_integer is not True for power in expression.atoms(sympy.Pow)
    )


def _differ_in_a_piece(left: Expr, right: Expr, symbols: list[Expr]) -> bool:
    return False in _outcomes(left, right, points_in_pieces((left, right), _rational_point(symbols, 0)))[0]


def _evaluate(expression: Expr) -> Expr | None:
    value = expression.evalf(DIGITS, maxn=400)
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return None
    parts = value.as_real_imag()
    return value if all(part.is_Float or part.is_Rational for part in parts) else None


def _close(left: Expr | None, right: Expr | None) -> bool | None:
    """Whether two values agree to 50 digits relative to the larger; None if both may be zero."""
    if left is None or right is None:
        return None
    size = max(abs(left), abs(right))
    if size < AGREE:
        return None
    return bool(abs(left - right) <= AGREE * size)


def same_direction(left: tuple[str, str], right: tuple[str, str], *, signed: bool) -> bool:
    """Whether a - b and c - d differ by a constant factor, so that they state the same equation, or, with `signed`, the
    same inequality."""
    a, b, c, d = parsed_alike(*left, *right)
    if not all(map(is_scalar, (a, b, c, d))):
        return False
    one, other = _as_numbers_and_symbols(a - b), _as_numbers_and_symbols(c - d)
    symbols = sorted(one.free_symbols, key=str)
    if not symbols or one.free_symbols != other.free_symbols:
        return False
    if not is_evaluable(one) or not is_evaluable(other):
        return False
    ratios = []
    points = [_rational_point(symbols, number) for number in range(RATIO_POINTS)]
    for point in itertools.chain(points, points_in_pieces((one, other), points[0])):
        top, bottom = _evaluate(one.xreplace(point)), _evaluate(other.xreplace(point))
        if top is None or bottom is None or abs(bottom) < AGREE or abs(top) < AGREE:
            continue
        ratios.append(top / bottom)
    if len(ratios) < ENOUGH_POINTS or not all(_close(ratio, ratios[0]) for ratio in ratios[1:]):
        return False
    return not signed or bool(ratios[0].is_real and ratios[0] > 0)


# -- sets of reals -----------------------------------------------------------------------------------------


def interval(start: str, end: str, *, left_open: bool, right_open: bool) -> Expr:
    region = sympy.Interval(_real(start), _real(end), left_open, right_open)
    if region.is_empty:
        raise Unparsed(f"from {start} to {end} there is nothing: no interval, and no name of the empty set")
    return region


def _real(text: str) -> Expr:
    expression = parse(text)
    if not is_scalar(expression) or not is_evaluable(expression):
        raise Unparsed(f"{text} is no end of an interval")
    value = _with_real_roots(expression.doit())
    if value.is_extended_real is not True or (not value.is_comparable and not value.is_infinite):
        raise Unparsed(f"{text} is no real number")
    return value


def finite_set(texts: list[str]) -> Expr:
    return sympy.FiniteSet(*[_real(text) for text in texts])


def combine(operator: str, parts: list[Expr]) -> Expr:
    operations = {"cup": sympy.Union, "cap": sympy.Intersection, "setminus": sympy.Complement}
    return operations[operator](*parts)


def domain(name: str) -> Expr:
    return {"R": sympy.S.Reals, "Z": sympy.S.Integers, "N": sympy.S.Naturals, "Q": sympy.S.Rationals}.get(
        name, sympy.S.Complexes
    )


def same_set(left: Expr, right: Expr) -> bool:
    """Whether two sets are the same. Intervals, and unions of them, are compared in order and by their exact ends, in
    whatever form these are written."""
    if left == right:
        return True
    one, other = _intervals(left), _intervals(right)
    if one is None or other is None or len(one) != len(other):
        return False
    return all(
        (a.left_open, a.right_open) == (b.left_open, b.right_open) and same(a.start, b.start) and same(a.end, b.end)
        for a, b in zip(one, other, strict=True)
    )


def _intervals(region: Expr) -> list[Expr] | None:
    """The intervals that make up a region, from left to right, or None if it has other parts."""
    parts = region.args if region.is_Union else (region,)
    if not all(part.is_Interval for part in parts):
        return None
    return sorted(parts, key=lambda part: float(part.start))
