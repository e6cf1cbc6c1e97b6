"""Results → the figures of the paper: score over the axis, learning curves, best score over another key of the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from rl_engine.sweep.analysis import Analysis, ArmReport, Found, curves_at
from rl_engine.sweep.config import COMMANDS, SweepConfig

# Okabe and Ito's colours, told apart by people with any kind of colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#7A5C00")
MARKERS = "osD^vPXh"
RING: Mapping[str, Any] = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.5}
FORMATS: Mapping[str, Mapping[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
"""The same results are the same bytes: no date, and below a fixed salt for the names inside an SVG."""


def draw(config: SweepConfig, found: Found, analysis: Analysis, directory: Path) -> list[Path]:
    """All figures that the results have something for, as PNG and as SVG; the files written."""
    if not any(point.scores for report in analysis.arms for point in report.points):
        return []
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "rl_engine", "font.size": 9, "legend.frameon": False}):
        figures = {f"score_against_{_short(config.axis)}": score_over_axis(config, found, analysis)}
        if any(report.best for report in analysis.arms):
            figures["learning_curves"] = learning_curves(config, found, analysis)
        for key in config.grid:
            if key != config.axis and any(len(reports) > 1 for reports in _lines_over(analysis, key).values()):
                figures[f"best_against_{_short(key)}"] = best_over(config, analysis, key)
        for name, figure in figures.items():
            for ending, options in FORMATS.items():
                paths.append(directory / f"{name}.{ending}")
                figure.savefig(paths[-1], **options)
    return paths


def score_over_axis(config: SweepConfig, found: Found, analysis: Analysis) -> Figure:
    """Mean score of each arm over the axis, a band from the lowest to the highest seed, a dot for each seed, a ring
    at the best; a cross on the floor where a run failed."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    styles = _styles(config, analysis)
    for report in analysis.arms:
        style = styles[report.arm.name]
        scored = [point for point in report.points if point.scores]
        values = [point.axis_value for point in scored]
        seeds = [[*point.scores.values()] for point in scored]
        means = [fmean(scores) for scores in seeds]
        axes.plot(values, means, label=report.arm.name, **style)
        _band(axes, values, seeds, style["color"])
        for value, scores in zip(values, seeds, strict=True):
            axes.plot([value] * len(scores), scores, ".", color=style["color"], markersize=4)
        if report.best:
            top = means[values.index(report.best.axis_value)]
            axes.plot([report.best.axis_value], [top], "o", color=style["color"], **RING)
        failed = [point.axis_value for point in report.points if point.failed]
        axes.plot(failed, [0.02] * len(failed), "x", color=style["color"], transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(config.axis)
    axes.set_ylabel(config.score.metric)
    before = _before_training(config, found)
    if config.score.mode == "min":
        _as_losses(axes)
        _leave_out_the_diverged(axes, analysis, before)
    if before is not None:
        # A line that is off the picture is still told by the legend.
        axes.axhline(before, color="grey", linestyle=":", linewidth=1, label=f"before training: {before:.3g}")
    _finish(figure, [axes])
    return figure


def _band(axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], colour: str) -> None:
    """Shade from the lowest to the highest seed at each x."""
    axes.fill_between(x, [*map(min, seeds)], [*map(max, seeds)], color=colour, alpha=0.15, linewidth=0)


def _before_training(config: SweepConfig, found: Found) -> float | None:
    """The untrained model's score, where the runs evaluated it."""
    curves = [result.curves[config.score.metric] for result in found.values() if config.score.metric in result.curves]
    before = [curve[0][1] for curve in curves if curve[0][0] == 0]
    return fmean(before) if before else None


def _as_losses(axes: Axes) -> None:
    """On a logarithmic scale, as in the paper: what tells arms apart is small beside what all have learned."""
    if all(np.min(line.get_ydata(), initial=1) > 0 for line in axes.get_lines()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _leave_out_the_diverged(axes: Axes, analysis: Analysis, before: float | None) -> None:
    """A loss worse than the untrained model's and every arm's best would flatten all others: it is off the picture."""
    bests = [report.best.score.value for report in analysis.arms if report.best]
    scores = [score for report in analysis.arms for point in report.points for score in point.scores.values()]
    limit = max([*bests, *([] if before is None else [before])], default=max(scores))
    scale = axes.yaxis.get_transform()
    low, high = scale.transform([min(scores), max(score for score in scores if score <= limit)])
    margin = 0.05 * (high - low)
    if margin > 0:
        axes.set_ylim(*scale.inverted().transform([low - margin, high + margin]))


def learning_curves(config: SweepConfig, found: Found, analysis: Analysis) -> Figure:
    """Each metric over the steps, of each arm at its best axis value: mean over seeds, lowest to highest as a band."""
    drawn = [metric for metric in config.metrics if any(metric in result.curves for result in found.values())]
    figure = Figure(figsize=(max(6.4, 3.6 * len(drawn)), 3.8), layout="constrained")
    panels: list[Axes] = [*figure.subplots(1, len(drawn), squeeze=False)[0]]
    styles = _styles(config, analysis)
    for metric, axes in zip(drawn, panels, strict=True):
        for report in analysis.arms:
            if report.best is None:
                continue
            style = styles[report.arm.name]
            steps, rows = curves_at(config, report.arm, report.best.axis_value, found, metric)
            label = f"{report.arm.name} ({_short(config.axis)} {report.best.axis_value:g})"
            axes.plot(steps, [fmean(row) for row in rows], label=label, **(style | {"markersize": 3}))
            _band(axes, steps, rows, style["color"])
        axes.set_xscale(COMMANDS[config.command].step_scale)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("step")
        axes.set_ylabel(metric)
        if metric == config.score.metric and config.score.mode == "min":
            _as_losses(axes)
    _finish(figure, panels)
    return figure


def best_over(config: SweepConfig, analysis: Analysis, key: str) -> Figure:
    """Score at the best axis value over another key of the grid, with 95 % intervals: a line for the arms that differ
    in nothing else, a level for an arm without others."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    styles = _styles(config, analysis)
    numbers = all(isinstance(value, int | float) and value > 0 for value in config.grid[key])
    for label, reports in _lines_over(analysis, key).items():
        style = styles[reports[0].arm.name]
        scores = [report.best.score for report in reports if report.best]
        values = [report.arm.at[key] if numbers else str(report.arm.at[key]) for report in reports if report.best]
        if len(reports) == 1:
            for score in scores:
                axes.axhline(score.value, label=label, **{**style, "marker": None})
            continue
        ends = [score.interval or (score.value, score.value) for score in scores]
        heights = [score.value for score in scores]
        errors = [[h - low for h, (low, _) in zip(heights, ends, strict=True)]]
        errors += [[high - h for h, (_, high) in zip(heights, ends, strict=True)]]
        axes.errorbar(values, heights, yerr=errors, label=label, capsize=3, **style)
    if numbers:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(f"{config.score.metric} at the best {config.axis}")
    _finish(figure, [axes])
    return figure


def _lines_over(analysis: Analysis, key: str) -> dict[str, list[ArmReport]]:
    """Arms that differ in one key of the grid alone, by what they share."""
    lines: dict[str, list[ArmReport]] = {}
    for report in analysis.arms:
        others = [f"{name}={value}" for name, value in report.arm.at.items() if name != key]
        lines.setdefault(", ".join(filter(None, [report.arm.family, *others])), []).append(report)
    return lines


def _styles(config: SweepConfig, analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Arm → how its line looks; the reference black and dashed."""
    styles: dict[str, dict[str, Any]] = {}
    for index, report in enumerate(analysis.arms):
        marker = MARKERS[index % len(MARKERS)]
        colours = len(styles) - sum(style["color"] == "black" for style in styles.values())
        is_reference = bool(report.arm.family) and report.arm.family == config.reference
        styles[report.arm.name] = {
            "color": "black" if is_reference else COLOURS[colours % len(COLOURS)],
            "linestyle": "--" if is_reference else "-",
            "marker": marker,
            "markersize": 5,
            "linewidth": 1.4,
        }
    return styles


def _finish(figure: Figure, panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) < 7 else 3)


def _short(key: str) -> str:
    """A key in a file's name or a legend: `optim.lr` is the rate."""
    return "rate" if key == "optim.lr" else key.split(".")[-1]
