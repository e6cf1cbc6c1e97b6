"""Scores by seed and axis value → best value, good range, and their uncertainty. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom: ten numbers instead of a dependency. With more degrees
# of freedom the last one is used, which makes the interval slightly too wide.
T975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
DRAWS = 4000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedEstimate:
    value: float
    interval: tuple[float, float] | None
    """95 % interval; None if it cannot be estimated, as from a single seed or from equal scores."""


def mean_over_seeds(scores: Sequence[float]) -> SeedEstimate:
    """The mean with Student's t interval, which covers other choices of seeds on the same problems. Scores that are
    all alike, as a few seeds on a few problems may be, say no more about other seeds than one of them."""
    mean = fmean(scores)
    if math.isclose(min(scores), max(scores), abs_tol=1e-12):
        return SeedEstimate(value=mean, interval=None)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    half = T975[min(len(scores) - 1, len(T975)) - 1] * spread / math.sqrt(len(scores))
    return SeedEstimate(value=mean, interval=(mean - half, mean + half))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The spread of scores between seeds."""

    deviation: float
    """Standard deviation, assumed to be the same everywhere."""
    freedom: int
    """Degrees of freedom of the estimate."""


def pooled_spread(groups: Iterable[Sequence[float]]) -> Spread | None:
    """The spread between seeds within a group, pooled over all groups; None if no group has two seeds."""
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    squares = math.fsum((score - fmean(group)) ** 2 for group in groups for score in group)
    freedom = sum(len(group) - 1 for group in groups)
    return Spread(deviation=math.sqrt(squares / freedom), freedom=freedom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optima:
    """The optima of D curves over the same K points; each field [D]."""

    best: Floats
    """Vertex of the parabola through the highest point and its two neighbours. It is at most half a grid step from the
    highest point, and is that point itself if a neighbour is −∞. If the highest point is at an end of the axis, what
    lies beyond is unknown: −∞ or ∞. For a single point NaN."""
    low: Floats
    """Where, going left from the highest point, the line through the points first falls `tolerance` below it; the end
    of the axis if it never does."""
    high: Floats
    """Like `low`, going right."""


def optima(x_K: Floats, y_DK: Floats, tolerance: float) -> Optima:
    """Maxima of curves that are known at ascending points x. y is −∞ where it is bad by an unknown amount."""
    rows = np.arange(len(y_DK))
    top = y_DK.argmax(axis=1)
    best = np.where(top == 0, -np.inf, np.where(top == len(x_K) - 1, np.inf, x_K[top]))
    if len(x_K) == 1:
        best[:] = np.nan
    inside = (top > 0) & (top < len(x_K) - 1)
    row, k = rows[inside], top[inside]
    left, right = x_K[k] - x_K[k - 1], x_K[k + 1] - x_K[k]
    rise, fall = y_DK[row, k] - y_DK[row, k - 1], y_DK[row, k] - y_DK[row, k + 1]
    # Vertex by successive parabolic interpolation (Numerical Recipes, 10.2.1). If all three are equal, keep the middle.
    bend = left * fall + right * rise
    bent = (bend > 0) & np.isfinite(bend)
    with np.errstate(invalid="ignore"):  # ∞ − ∞, which is not used
        shift = (right**2 * rise - left**2 * fall) / (2 * np.where(bent, bend, 1))
    best[inside] += np.where(bent, shift, 0)
    level = y_DK[rows, top] - tolerance
    return Optima(
        best=best,
        low=-_falls_below(-x_K[::-1], y_DK[:, ::-1], len(x_K) - 1 - top, level),
        high=_falls_below(x_K, y_DK, top, level),
    )


def _falls_below(x_K: Floats, y_DK: Floats, top: NDArray[np.intp], level: Floats) -> Floats:
    """Where each curve first falls below its level to the right of its top; the last point if it never does. [D]"""
    rows = np.arange(len(y_DK))
    below = (y_DK < level[:, None]) & (np.arange(len(x_K)) > top[:, None])
    crossing = below.any(axis=1)
    end = below.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # −∞ on curves that do not cross, whose result is not used
        drop = y_DK[rows, end - 1] - y_DK[rows, end]
        share = (y_DK[rows, end - 1] - level) / np.where(crossing, drop, 1)
        return np.where(crossing, x_K[end - 1] + share * (x_K[end] - x_K[end - 1]), x_K[-1])


def possible_deviations(spread: Spread, generator: np.random.Generator) -> Floats:
    """Draws of the true standard deviation, given the estimated one. [DRAWS]"""
    return spread.deviation * np.sqrt(spread.freedom / generator.chisquare(spread.freedom, DRAWS))


def redrawn(y_K: Floats, seeds: int, deviations_D: Floats | None, generator: np.random.Generator) -> Floats:
    """The means, followed by draws of the means that other seeds might have given: a parametric bootstrap for means
    over `seeds` seeds whose spread is estimated. A point's draws follow Student's t with the degrees of freedom of that
    estimate; all points and arms of one draw share its deviation. [1 + DRAWS, K]; [1, K] if the spread is unknown."""
    if deviations_D is None:
        return y_K[None]
    noise = generator.normal(size=(DRAWS, len(y_K))) * deviations_D[:, None] / math.sqrt(seeds)
    return np.concatenate([y_K[None], y_K + noise])


def estimate(values_D: Floats) -> SeedEstimate:
    """The first value, which follows from the actual means, with the middle 95 % of the others, which follow from
    redrawn means.

    An unknown value (∞ − ∞) may lie anywhere, so it widens the interval at both ends.
    """
    interval = None
    if len(values_D) > 1:
        unknown = np.isnan(values_D[1:])
        low = np.quantile(np.where(unknown, -np.inf, values_D[1:]), 0.025, method="inverted_cdf")
        high = np.quantile(np.where(unknown, np.inf, values_D[1:]), 0.975, method="inverted_cdf")
        interval = (float(low), float(high))
    return SeedEstimate(value=float(values_D[0]), interval=interval)
