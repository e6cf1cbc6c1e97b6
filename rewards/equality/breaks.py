"""Piecewise functions → points in every piece, which the identity test checks before it calls two functions equal.

|x - 10| and 10 - x agree at every small number. Analytic functions can be judged by a few points anywhere; an absolute
value, a maximum or a floor cannot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import sympy
from sympy.polys.polytools import NoConvergence

from rewards.equality.defined import is_evaluable
from rewards.reading.parse import Expr

MAX_BREAKS = 12
MAX_DEGREE = 8
FAR = tuple(sympy.Rational(sign * 7, 5) * sympy.Integer(10) ** k for k in range(-3, 5) for sign in (1, -1))
"""Points near zero and far from it, for when the ends of the pieces are not known."""

_TURNING = (sympy.Abs, sympy.sign)
_STEPS = (sympy.floor, sympy.ceiling)
_IN_PIECES = (*_TURNING, *_STEPS, sympy.Max, sympy.Min)


def points_in_pieces(expressions: tuple[Expr, ...], anywhere: dict[Expr, Expr]) -> Iterator[dict[Expr, Expr]]:
    """Vary one unknown at a time over a value in each of its pieces; the others stay at the point `anywhere`."""
    if not any(_is_in_pieces(expression) for expression in expressions):
        return
    for symbol in anywhere:
        others = {other: value for other, value in anywhere.items() if other != symbol}
        turning = {argument for expression in expressions for argument in _arguments(expression.xreplace(others))}
        for value in _between(turning, symbol):
            point = {**others, symbol: value}
            if all(is_evaluable(expression.xreplace(point)) for expression in expressions):
                yield point


def _is_in_pieces(expression: Expr) -> bool:
    return expression.has(*_IN_PIECES) or any(_is_even_root(power) for power in expression.atoms(sympy.Pow))


def _is_even_root(power: Expr) -> bool:
    r"""Whether a power is like \sqrt{(x-10)^2}, which is |x-10|; \sqrt{x} has one piece."""
    return bool(power.exp.is_Rational and power.exp.q % 2 == 0 and power.base.has(sympy.Pow) and power.free_symbols)


def _arguments(expression: Expr) -> Iterator[Expr]:
    """The expressions that change sign where a piece ends."""
    for node in sympy.preorder_traversal(expression):
        if isinstance(node, _TURNING):
            yield node.args[0]
        elif isinstance(node, _STEPS):
            yield from (node.args[0] + step for step in (-1, 0, 1))
        elif isinstance(node, sympy.Max | sympy.Min):
            yield from (one - other for one, other in itertools.combinations(node.args, 2))
        elif isinstance(node, sympy.Pow) and _is_even_root(node):
            yield node.base


def _between(arguments: set[Expr], symbol: Expr) -> list[Expr]:
    """A value on either side of every root, and `FAR` if one of the arguments is not a short polynomial."""
    breaks: list[float] = []
    values: list[Expr] = []
    for argument in arguments:
        if not argument.has(symbol):
            continue
        roots = _real_roots(argument, symbol)
        if roots is None:
            values = list(FAR)
        else:
            breaks += [root for root in roots if all(abs(root - known) > 1e-9 for known in breaks)]
    ends = sorted(breaks)[:MAX_BREAKS]
    if ends:
        ends = [ends[0] - 2 - abs(ends[0]), *ends, ends[-1] + 2 + abs(ends[-1])]
    return values + [sympy.Rational((one + other) / 2) for one, other in itertools.pairwise(ends)]


def _real_roots(argument: Expr, symbol: Expr) -> list[float] | None:
    polynomial = argument.as_poly(symbol)
    if polynomial is None or polynomial.degree() > MAX_DEGREE or not all(c.is_real for c in polynomial.coeffs()):
        return None
    if polynomial.degree() == 1:
        slope, constant = polynomial.all_coeffs()
        return [float(-constant / slope)]
    try:
        roots = polynomial.sqf_part().nroots(n=12)
    except NoConvergence:
        return None
    return [float(sympy.re(root)) for root in roots if abs(sympy.im(root)) < 1e-9]
