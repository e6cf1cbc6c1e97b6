"""Results → what a sweep shows: each arm's scores over the axis, its best axis value, and how it compares."""

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
"""Results by the name of their cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One axis value of an arm."""

    axis_value: float
    scores: Mapping[int, float]
    """Seed → score, of the cells that are done."""
    failed: int
    """Cells that are not done and will not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm with the reference arm at the same other values of the grid."""

    best_ratio: SeedEstimate
    """Best axis value over the reference's."""
    score_difference: SeedEstimate
    """Score minus the reference's at each one's best axis value, paired by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Where an arm is at its best, and how good it is there."""

    axis_value: float
    """The best value of the grid."""
    best: SeedEstimate
    """The best value of the curve, between those of the grid."""
    good_range: tuple[float, float]
    """An end that is an end of the known points means that the range goes on beyond it, or may. Before a value where a
    run failed it ends at the last that is known to be good."""
    good_decades: SeedEstimate
    """Its width: log10 of its ends' ratio."""
    score: SeedEstimate
    """The score at `axis_value`, over the seeds that did not choose it where there are such."""
    seeds: int
    """How many those are."""
    comparison: Comparison | None
    """How it compares with the reference; absent for itself, and where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    arm: Arm
    points: tuple[Point, ...]
    best: Best | None
    """Absent as long as no axis value has all of `seeds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    arms: tuple[ArmReport, ...]
    spread: Spread | None
    """The spread of a score between seeds, pooled over every axis value of every arm that has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peak:
    """An arm's best point, and the optima of its curve in log10 of the axis, as `statistics.redrawn` has them."""

    point: Point
    optima: Optima


def due_cells(config: SweepConfig, found: Found) -> list[Cell]:
    """Cells to run, as far as that is known: an arm's confirming ones follow from the results of its others."""
    cells = []
    for arm in arms_of(config):
        first = _first_cells(config, arm)
        cells += first
        if all(cell.name in found for cell in first):
            best = best_point(config, points_of(config, arm, found))
            cells += [cell_of(config, arm, best.axis_value, seed) for seed in config.confirm_seeds] if best else []
    return [cell for cell in cells if cell.name not in found]


def cells_left(config: SweepConfig, found: Found) -> int:
    """How many cells are still to run, those included that are not known yet."""
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
    """The steps that a metric's curves of all seeds have in common there, and the values at each."""
    names = [cell_of(config, arm, axis_value, seed).name for seed in (*config.seeds, *config.confirm_seeds)]
    tables = [dict(found[name].curves[metric]) for name in names if name in found and metric in found[name].curves]
    steps = sorted(set.intersection(*({*table} for table in tables))) if tables else []
    return steps, [[table[step] for table in tables] for step in steps]


def known_curve(config: SweepConfig, points: Sequence[Point]) -> tuple[list[Point], list[float]]:
    """The points that are known, and the means over `seeds`, turned so that high is good. Where one of these failed is
    no good place, and known to be none: −∞. Where one is not done yet nothing is known."""
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
    """The one with the best mean over `seeds`; None as long as no point has all of them."""
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
        reference = _reference(config, arm, arms)
        return _best(config, peaks[arm.name], peaks.get(reference.name) if reference else None)

    return Analysis(
        arms=tuple(ArmReport(arm=arm, points=points[arm.name], best=best_of(arm)) for arm in arms), spread=spread
    )


def _reference(config: SweepConfig, arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """What the arm is compared with: the reference at the same values of the grid, or the only one there is."""
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
    """Scores of the seeds that did not choose the point; of those that did, where there are no others."""
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
    """Absent when the two have no seed in common."""
    ours, theirs = judged(config, peak.point), judged(config, reference.point)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return None
    with np.errstate(invalid="ignore"):  # both beyond the axis: nothing is known
        ratio = peak.optima.best - reference.optima.best
    return Comparison(
        best_ratio=_power(estimate(ratio)),
        score_difference=mean_over_seeds(differences),
    )


def _power(exponent: SeedEstimate) -> SeedEstimate:
    """Back from log10; what is beyond the axis stays so."""
    interval = exponent.interval and (_ten_to(exponent.interval[0]), _ten_to(exponent.interval[1]))
    return SeedEstimate(value=_ten_to(exponent.value), interval=interval)


def _ten_to(exponent: float) -> float:
    return 10**exponent if math.isfinite(exponent) else exponent
