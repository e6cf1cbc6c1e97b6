"""Results → what a sweep reports: each arm's scores over the axis, its best axis value, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rl_engine.sweep.cells import Arm, Cell, arms_of, cell_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.results import Result
from rl_engine.sweep.statistics import (
    Floats,
    Optima,
    SeedEstimate,
    Spread,
    estimate,
    mean_over_seeds,
    optima,
    pooled_spread,
    possible_deviations,
    redrawn,
)

Found = Mapping[str, Result]
"""Name of a cell → its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One axis value of an arm."""

    axis_value: float
    scores: Mapping[int, float]
    """Seed → score, for the cells that are done."""
    failed: int
    """Number of cells that have ended without a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm compared with the reference arm, at the same values of the other grid keys."""

    best_ratio: SeedEstimate
    """Best axis value divided by the reference's."""
    score_difference: SeedEstimate
    """Score minus the reference's, each at its own best axis value, paired by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Where an arm performs best, and how well."""

    axis_value: float
    """The best axis value of the grid."""
    best: SeedEstimate
    """The maximum of the interpolated curve, between values of the grid."""
    good_range: tuple[float, float]
    """Axis values that score within `score.tolerance` of the best. An end that coincides with the first or last known
    point means that the range may extend beyond it. Next to a value where a run failed, the range ends at the last
    value known to be good."""
    good_decades: SeedEstimate
    """Width of the good range: log10 of the ratio of its ends."""
    score: SeedEstimate
    """The score at `axis_value`, over the seeds that were not used to choose it, if there are any."""
    seeds: int
    """Number of seeds in `score`."""
    comparison: Comparison | None
    """Comparison with the reference; None for the reference itself, and if there is no reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    arm: Arm
    points: tuple[Point, ...]
    best: Best | None
    """None as long as no axis value has scores for all of `seeds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    arms: tuple[ArmReport, ...]
    spread: Spread | None
    """The spread of the score between seeds, pooled over all points that have several seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peak:
    """An arm's best point, and the optima of its curve and its redrawn curves (`statistics.redrawn`), in log10."""

    point: Point
    optima: Optima


def due_cells(config: SweepConfig, found: Found) -> list[Cell]:
    """The cells to run next, as far as known: an arm's confirming cells follow from the results of its other cells."""
    cells = []
    for arm in arms_of(config):
        first = _first_cells(config, arm)
        cells += first
        if all(cell.name in found for cell in first):
            best = best_point(config, points_of(config, arm, found))
            cells += [cell_of(config, arm, best.axis_value, seed) for seed in config.confirm_seeds] if best else []
    return [cell for cell in cells if cell.name not in found]


def cells_left(config: SweepConfig, found: Found) -> int:
    """Number of cells still to run, including those that are not known yet."""
    waiting = [arm for arm in arms_of(config) if any(cell.name not in found for cell in _first_cells(config, arm))]
    return len(due_cells(config, found)) + len(waiting) * len(config.confirm_seeds)


def _first_cells(config: SweepConfig, arm: Arm) -> list[Cell]:
    return [cell_of(config, arm, value, seed) for value in arm.axis_values for seed in config.seeds]


def points_of(config: SweepConfig, arm: Arm, found: Found) -> tuple[Point, ...]:
    points = []
    for value in arm.axis_values:
        names = {seed: cell_of(config, arm, value, seed).name for seed in (*config.seeds, *config.confirm_seeds)}
        results = {seed: found[name] for seed, name in names.items() if name in found}
        scores = {seed: result.score for seed, result in results.items() if result.score is not None}
        points.append(Point(axis_value=value, scores=scores, failed=len(results) - len(scores)))
    return tuple(points)


def curves_at(
    config: SweepConfig, arm: Arm, axis_value: float, found: Found, metric: str
) -> tuple[list[int], list[list[float]]]:
    """The steps that a metric's curves for all seeds have in common at an axis value, and the values at each step."""
    names = [cell_of(config, arm, axis_value, seed).name for seed in (*config.seeds, *config.confirm_seeds)]
    tables = [dict(found[name].curves[metric]) for name in names if name in found and metric in found[name].curves]
    steps = sorted(set.intersection(*({*table} for table in tables))) if tables else []
    return steps, [[table[step] for table in tables] for step in steps]


def known_curve(config: SweepConfig, points: Sequence[Point]) -> tuple[list[Point], list[float]]:
    """The known points and their means over `seeds`, with the sign such that higher is better. A point where one of
    these seeds failed is known to be bad, with mean −∞. A point with an unfinished seed is not known."""
    sign = 1 if config.score.mode == "max" else -1
    known, means = [], []
    for point in points:
        if all(seed in point.scores for seed in config.seeds):
            known.append(point)
            means.append(sign * fmean(point.scores[seed] for seed in config.seeds))
        elif point.failed:
            known.append(point)
            means.append(-math.inf)
    return known, means


def best_point(config: SweepConfig, points: Sequence[Point]) -> Point | None:
    """The point with the best mean over `seeds`; None as long as no point has all of them."""
    known, means = known_curve(config, points)
    highest = max(means, default=-math.inf)
    return known[means.index(highest)] if highest > -math.inf else None


def analyse(config: SweepConfig, found: Found) -> Analysis:
    arms = arms_of(config)
    points = {arm.name: points_of(config, arm, found) for arm in arms}
    best = {name: point for name, each in points.items() if (point := best_point(config, each))}
    spread = pooled_spread([[*point.scores.values()] for each in points.values() for point in each])
    deviations = None if spread is None else possible_deviations(spread, np.random.default_rng(len(best)))
    peaks = {
        name: _peak(config, points[name], point, deviations, np.random.default_rng(index))
        for index, (name, point) in enumerate(best.items())
    }

    def best_of(arm: Arm) -> Best | None:
        if arm.name not in peaks:
            return None
        reference = reference_of(config, arm, arms)
        return _best(config, peaks[arm.name], peaks.get(reference.name) if reference else None)

    return Analysis(
        arms=tuple(ArmReport(arm=arm, points=points[arm.name], best=best_of(arm)) for arm in arms), spread=spread
    )


def reference_of(config: SweepConfig, arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The arm to compare with: the reference arm at the same grid values, or else the only reference arm."""
    references = [other for other in arms if other.family == config.reference]
    same = [other for other in references if other.at == arm.at]
    found = same or (references if len(references) == 1 else [])
    return found[0] if found and found[0] is not arm else None


def _peak(
    config: SweepConfig,
    points: Sequence[Point],
    best: Point,
    deviations: Floats | None,
    generator: np.random.Generator,
) -> _Peak:
    known, means = known_curve(config, points)
    x_K = np.log10([point.axis_value for point in known])
    y_DK = redrawn(np.array(means), len(config.seeds), deviations, generator)
    return _Peak(point=best, optima=optima(x_K, y_DK, config.score.tolerance))


def judged(config: SweepConfig, point: Point) -> dict[int, float]:
    """Scores of the seeds that were not used to choose the point, or of those that were if there are no others."""
    unbiased = {seed: score for seed, score in point.scores.items() if seed in config.confirm_seeds}
    return unbiased or dict(point.scores)


def _best(config: SweepConfig, peak: _Peak, reference: _Peak | None) -> Best:
    scores, curve = judged(config, peak.point), peak.optima
    return Best(
        axis_value=peak.point.axis_value,
        best=_power(estimate(curve.best)),
        good_range=(float(10 ** curve.low[0]), float(10 ** curve.high[0])),
        good_decades=estimate(curve.high - curve.low),
        score=mean_over_seeds([*scores.values()]),
        seeds=len(scores),
        comparison=_compare(config, peak, reference) if reference else None,
    )


def _compare(config: SweepConfig, peak: _Peak, reference: _Peak) -> Comparison | None:
    """Compare an arm with the reference; None if they have no seed in common."""
    ours, theirs = judged(config, peak.point), judged(config, reference.point)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return None
    with np.errstate(invalid="ignore"):  # ∞ − ∞ if both are beyond the axis: unknown
        ratio = peak.optima.best - reference.optima.best
    return Comparison(
        best_ratio=_power(estimate(ratio)),
        score_difference=mean_over_seeds(differences),
    )


def _power(exponent: SeedEstimate) -> SeedEstimate:
    """10 to the power of an estimate; values beyond the axis (±∞, NaN) stay as they are."""
    interval = exponent.interval and (_ten_to(exponent.interval[0]), _ten_to(exponent.interval[1]))
    return SeedEstimate(value=_ten_to(exponent.value), interval=interval)


def _ten_to(exponent: float) -> float:
    return 10**exponent if math.isfinite(exponent) else exponent
