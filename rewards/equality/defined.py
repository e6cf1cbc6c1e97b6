"""A sympy object → whether it can be evaluated, and whether it has a value at all."""

from __future__ import annotations

import math
from fractions import Fraction

import sympy

from rewards.reading.parse import Expr

MAX_POWER = 200_000.0
"""A value with more decimal digits than this is not evaluated."""
MAX_FACTORIAL = 20_000

_LIKE_EXP = (sympy.exp, sympy.sinh, sympy.cosh, sympy.sech, sympy.csch)
_FAST_GROWING = (sympy.factorial, sympy.factorial2, sympy.gamma, sympy.binomial, sympy.fibonacci)
_WITH_POLES = (sympy.tan, sympy.cot, sympy.sec, sympy.csc, sympy.factorial, sympy.gamma, sympy.zeta, sympy.atanh)


def is_defined(expression: Expr) -> bool:
    r"""Whether no part of an expression is 7/0, \log 0, \tan 90^\circ or \infty - \infty.

    Each part is checked separately, because sympy can turn an undefined part into a value: 1/(1/0) into 0, and |1/0|
    into infinity.
    """
    if has_no_value(expression):
        return False
    return not any(_may_be_undefined(node) and _is_undefined(node) for node in sympy.postorder_traversal(expression))


def has_no_value(expression: Expr) -> bool:
    return bool(expression.has(sympy.zoo, sympy.nan))


def _may_be_undefined(node: Expr) -> bool:
    """A cheap test that decides most expressions."""
    if isinstance(node, sympy.Pow):
        infinite = node.base.is_infinite or node.exp.is_infinite
        return bool(infinite or not (node.exp.is_nonnegative or node.base.is_zero is False))
    if isinstance(node, sympy.log):
        return any(argument.is_zero is not False for argument in node.args) or sympy.S.One in node.args[1:]
    if isinstance(node, sympy.Add | sympy.Mul):
        return any(argument.is_infinite for argument in node.args)
    return isinstance(node, _WITH_POLES)


def _is_undefined(node: Expr) -> bool:
    if (node.free_symbols and not node.has(sympy.oo, -sympy.oo)) or not is_evaluable(node):
        return False
    if isinstance(node, sympy.log) and any(argument.doit(deep=True).is_zero for argument in node.args):
        return True  # also to base 0, for which sympy returns 0
    return has_no_value(node.doit(deep=True))


def is_evaluable(expression: Expr) -> bool:
    """Whether an expression is small enough to evaluate. Answers whose powers or factorials would fill the memory are
    compared only as text."""
    for node in sympy.preorder_traversal(expression):
        if isinstance(node, (sympy.Pow, *_LIKE_EXP)) and _digits(node) > MAX_POWER:
            return False
        if isinstance(node, _FAST_GROWING) and any(_size(argument) > MAX_FACTORIAL for argument in node.args):
            return False
    return True


def _digits(power: Expr) -> float:
    """The approximate number of decimal digits of a power."""
    base, exponent = (sympy.E, power.args[0]) if isinstance(power, _LIKE_EXP) else power.as_base_exp()
    size = _size(exponent)
    if size <= 1:
        return 0.0
    return size * max(1.0, math.log10(max(2.0, _size(base)))) if size < math.inf else math.inf


def _size(expression: Expr) -> float:
    """An upper estimate of |expression|, in floats, without evaluating it. Symbols count as small."""
    if expression.is_Rational:
        return (
            abs(float(Fraction(int(expression.p), int(expression.q)))) if expression.p.bit_length() < 900 else math.inf
        )
    if not expression.args:
        return 4.0
    sizes = [_size(argument) for argument in expression.args]
    try:
        if expression.is_Add:
            return math.fsum(sizes)
        if expression.is_Pow:
            return max(1.0, sizes[0]) ** sizes[1] if sizes[1] < math.inf else math.inf
        if expression.is_Mul:
            return math.prod(max(size, 1e-3) for size in sizes)
        if isinstance(expression, sympy.factorial | sympy.gamma):
            return math.gamma(min(sizes[0], 170.0) + 1) if sizes[0] <= 170 else math.inf
        if isinstance(expression, _LIKE_EXP):
            return math.exp(sizes[0])
        return max(sizes)
    except (OverflowError, ValueError):
        return math.inf
