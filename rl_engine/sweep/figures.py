"""Results → the paper's figures: score over the axis, learning curves, best score over another key of the grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from rl_engine.drawing.style import Sign, count_along, legend_below, name_panel, paper_figure, paper_style, save_figure
from rl_engine.report.charts import titles_of
from rl_engine.sweep.analysis import Analysis, ArmReport, Found, curves_at
from rl_engine.sweep.cells import Arm
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.line_styles import line_styles_of

RING: Mapping[str, Any] = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.0}
FORMATS: Mapping[str, Mapping[str, Any]] = {"png": {}, "svg": {"metadata": {"Date": None}}}
"""Format → options of `savefig`. Without a date, the same results give the same bytes."""
# Tick labels within a decade of losses, keyed by the least ratio of the highest to the lowest loss shown.
LOSSES = {30: (1, 3), 3: (1, 1.5, 2, 3, 5, 7), 1: (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)}
KEY_TITLES = {
    "optim.lr": "learning rate",
    "lora.rank": "LoRA rank",
    "train.batch_size": "examples per step",
    "train.problems_per_step": "problems per step",
    "train.steps": "steps",
}


def draw(config: SweepConfig, found: Found, analysis: Analysis, directory: Path) -> list[Path]:
    """Draw all figures that the results have data for, as PNG and SVG, and return the files written."""
    if not any(point.scores for report in analysis.arms for point in report.points):
        return []
    paths = []
    with paper_style():
        for name, figure in figures_of(config, found, analysis).items():
            for ending, options in FORMATS.items():
                paths.append(directory / f"{name}.{ending}")
                save_figure(figure, paths[-1], **options)
    return paths


def figures_of(config: SweepConfig, found: Found, analysis: Analysis) -> dict[str, Figure]:
    """Stem of the file → figure."""
    figures = {f"score_against_{_short(config.axis)}": score_over_axis(config, found, analysis)}
    if any(report.best for report in analysis.arms):
        figures["learning_curves"] = learning_curves(config, found, analysis)
    for key in config.grid:
        if key != config.axis and any(len(reports) > 1 for reports in _lines_over(analysis, key).values()):
            figures[f"best_against_{_short(key)}"] = best_over(config, analysis, key)
    return figures


def score_over_axis(config: SweepConfig, found: Found, analysis: Analysis) -> Figure:
    """Mean score of each arm over the axis, with a band from the lowest to the highest seed, a dot for each seed, a
    ring at the best value, and a cross at the bottom where a run failed."""
    figure, (axes,) = paper_figure()
    styles = line_styles_of(config, [report.arm for report in analysis.arms])
    for report in analysis.arms:
        style = styles[report.arm.name]
        scored = [point for point in report.points if point.scores]
        values = [point.axis_value for point in scored]
        seeds = [[*point.scores.values()] for point in scored]
        means = [fmean(scores) for scores in seeds]
        axes.plot(values, means, label=_label(report.arm), **style)
        _band(axes, values, seeds, style["color"])
        for value, scores in zip(values, seeds, strict=True):
            if len(scores) > 1:
                axes.plot([value] * len(scores), scores, ".", color=style["color"], markersize=2)
        if report.best:
            top = means[values.index(report.best.axis_value)]
            axes.plot([report.best.axis_value], [top], "o", color=style["color"], **RING)
        failed = [point.axis_value for point in report.points if point.failed]
        axes.plot(failed, [0.02] * len(failed), "x", color=style["color"], transform=axes.get_xaxis_transform())
    _as_grid(axes, config.axis, {point.axis_value for report in analysis.arms for point in report.points})
    before = _before_training(config, found)
    if config.score.mode == "min":
        _as_losses(axes)
        _leave_out_the_diverged(axes, analysis, before)
    _name(axes, config.score.metric)
    if before is not None:
        # The legend gives the value even if the line is outside the axes.
        shown_score = f"{before:.1%}" if titles_of(config.score.metric)[1].startswith("%") else f"{before:.3g}"
        axes.axhline(before, color="grey", linestyle=":", linewidth=1, label=f"before training: {shown_score}")
    legend_below(figure, _signs(axes))
    return figure


def _band(axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], colour: str) -> None:
    """Shade from the lowest to the highest seed at each x."""
    axes.fill_between(x, [*map(min, seeds)], [*map(max, seeds)], color=colour, alpha=0.15, linewidth=0)


def _before_training(config: SweepConfig, found: Found) -> float | None:
    """The untrained model's score, if the runs evaluated it."""
    curves = [result.curves[config.score.metric] for result in found.values() if config.score.metric in result.curves]
    before = [curve[0][1] for curve in curves if curve[0][0] == 0]
    return fmean(before) if before else None


def _as_losses(axes: Axes) -> None:
    """Use a logarithmic scale, as in the paper: arms differ by little compared with what all of them have learned."""
    if all(np.min(line.get_ydata(), initial=1) > 0 for line in axes.get_lines()):
        axes.set_yscale("log")


def _leave_out_the_diverged(axes: Axes, analysis: Analysis, before: float | None) -> None:
    """Crop losses that are worse than the untrained model's and every arm's best: they would flatten the others."""
    bests = [report.best.score.value for report in analysis.arms if report.best]
    scores = [score for report in analysis.arms for point in report.points for score in point.scores.values()]
    limit = max([*bests, *([] if before is None else [before])], default=max(scores))
    scale = axes.yaxis.get_transform()
    low, high = scale.transform([min(scores), max(score for score in scores if score <= limit)])
    margin = 0.05 * (high - low)
    if margin > 0:
        axes.set_ylim(*scale.inverted().transform([low - margin, high + margin]))


def learning_curves(config: SweepConfig, found: Found, analysis: Analysis) -> Figure:
    """Each metric over the steps, for each arm at its best axis value: mean over seeds, and a min–max band."""
    drawn = _with_curves(config, found)
    figure, panels = paper_figure(len(drawn))
    styles = line_styles_of(config, [report.arm for report in analysis.arms])
    for metric, axes in zip(drawn, panels, strict=True):
        for report in analysis.arms:
            if report.best is None:
                continue
            style = styles[report.arm.name]
            steps, rows = curves_at(config, report.arm, report.best.axis_value, found, metric)
            label = f"{_label(report.arm)} ({_short(config.axis)} {_number(report.best.axis_value)})"
            axes.plot(steps, [fmean(row) for row in rows], label=label, markevery=max(1, len(steps) // 8), **style)
            _band(axes, steps, rows, style["color"])
        count_along(axes, "step")
        if COMMANDS[config.command].step_scale == "symlog":
            axes.set_xscale("symlog")
            axes.xaxis.set_major_formatter(ScalarFormatter())
        if metric == config.score.metric and config.score.mode == "min":
            _as_losses(axes)
        _name(axes, metric)
    legend_below(figure, _signs(panels[0]))
    return figure


def _with_curves(config: SweepConfig, found: Found) -> list[str]:
    """The metrics to draw. One that is known only before and after training is not a curve, and is drawn only if there
    is no other."""
    steps = {metric: max(len(result.curves.get(metric, ())) for result in found.values()) for metric in config.metrics}
    return [metric for metric, count in steps.items() if count > 2] or [m for m, count in steps.items() if count]


def best_over(config: SweepConfig, analysis: Analysis, key: str) -> Figure:
    """Score at the best axis value over another key of the grid, with 95 % intervals: one line for arms that differ in
    nothing else, a horizontal line for an arm without such others."""
    figure, (axes,) = paper_figure()
    lines = _lines_over(analysis, key)
    styles = line_styles_of(config, [reports[0].arm for reports in lines.values()], key)
    numbers = all(isinstance(value, int | float) and value > 0 for value in config.grid[key])
    for label, reports in lines.items():
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
        axes.errorbar(values, heights, yerr=errors, label=label, capsize=2, **style)
    if numbers:
        _as_grid(axes, key, set(config.grid[key]))
    axes.set_xlabel(KEY_TITLES.get(key, key))
    _name(axes, config.score.metric, f"\nat the best {KEY_TITLES.get(config.axis, config.axis)}")
    legend_below(figure, _signs(axes))
    return figure


def _lines_over(analysis: Analysis, key: str) -> dict[str, list[ArmReport]]:
    """Arms grouped so that those in a group differ only in `key`, by a label of what they share."""
    lines: dict[str, list[ArmReport]] = {}
    for report in analysis.arms:
        others = [f"{_short(name)}={value}" for name, value in report.arm.at.items() if name != key]
        lines.setdefault(", ".join(filter(None, [report.arm.family, *others])), []).append(report)
    return lines


def _as_grid(axes: Axes, key: str, values: Collection[float]) -> None:
    """Make the x axis logarithmic, labelled with the grid's own values unless they are too close together."""
    axes.set_xscale("log")
    places = np.log10(sorted(values))
    near = len(places) > 1 and np.min(np.diff(places)) < 0.1 * (places[-1] - places[0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)) if near else FixedLocator(sorted(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(KEY_TITLES.get(key, key))


def _name(axes: Axes, metric: str, where: str = "") -> None:
    """Set title and unit as in the figures of a run; fractions are shown in per cent."""
    title, unit = titles_of(metric)
    name_panel(axes, title + where, unit)
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        written = next(numbers for times, numbers in LOSSES.items() if high >= times * low)
        axes.yaxis.set_major_locator(LogLocator(subs=written))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if unit.startswith("%"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}"))


def _signs(axes: Axes) -> list[Sign]:
    return [*axes.get_legend_handles_labels()[0]]


def _label(arm: Arm) -> str:
    """The arm's name, with the grid's keys shortened."""
    name = arm.name
    for key in arm.at:
        name = name.replace(f"{key}=", f"{_short(key)}=")
    return name


def _number(value: float) -> str:
    """`3e-4`, `0.5`, `131072`."""
    if 0.1 <= abs(value) < 1e5 or float(value).is_integer():
        return f"{value:.10g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _short(key: str) -> str:
    """A key's short form for file names and legends; `optim.lr` becomes `rate`."""
    return "rate" if key == "optim.lr" else key.split(".")[-1]
