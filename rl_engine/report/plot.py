"""metrics.jsonl → pictures: `curves.png` beside a run, and each chart of one or more runs for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rl_engine.report.charts import COT_LENGTH, REWARD, Chart, Series, accuracy_chart, charts_of, suites_of
from rl_engine.run.records import read_metrics
from rollout.files.durable import naming
from rollout.files.ownership import figure_metadata

NAME = "curves.png"
# Okabe and Ito's colours, which colour-blind readers tell apart, a little darker; the report's page has the same.
COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b8528e", "#a87400", "#5b4bb5", "#3c8fb8", "#555555")
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "axes.prop_cycle": cycler(color=COLOURS),
    # The same data are the same file.
    "svg.hashsalt": "rl_engine",
}
Lines = Sequence[Mapping[str, float]]


def plot_run(run: Path) -> Path:
    """Draw `curves.png` into the run's directory: reward, accuracy on every suite, CoT length."""
    lines = read_metrics(run)
    accuracy = accuracy_chart(*suites_of({key for line in lines for key in line}))
    with style.context(STYLE):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for axes, chart in zip(figure.subplots(1, 3), (REWARD, accuracy, COT_LENGTH), strict=True):
            signs = draw_chart(axes, chart, {run.name: lines})
            if len(signs) > 1:
                axes.legend(handles=signs)
        figure.suptitle(run.name)
        path = run / NAME
        with naming(path):
            figure.savefig(path, dpi=120)
    return path


def plot_charts(runs: Mapping[str, Lines], directory: Path, file_format: str) -> list[Path]:
    """Each chart of these runs, overlaid, as `<chart>.png` or `.svg`: 3.4 inches wide, a column of a paper."""
    directory.mkdir(parents=True, exist_ok=True)
    files = chart_files(runs, directory, file_format)
    for chart, file in zip(_charts(runs), files, strict=True):
        with style.context(STYLE):
            figure = Figure(figsize=(3.4, 2.5), layout="constrained")
            signs = draw_chart(figure.subplots(), chart, runs)
            if len(signs) > 1:
                figure.legend(handles=signs, loc="outside lower center", ncols=3, fontsize=8)
            figure.savefig(file, dpi=300, metadata=figure_metadata(file))
    return files


def chart_files(runs: Mapping[str, Lines], directory: Path, file_format: str) -> list[Path]:
    """The files that `plot_charts` writes."""
    return [directory / f"{chart.name}.{file_format}" for chart in _charts(runs)]


def _charts(runs: Mapping[str, Lines]) -> list[Chart]:
    return charts_of({key for lines in runs.values() for line in lines for key in line})


def draw_chart(axes: Axes, chart: Chart, runs: Mapping[str, Lines]) -> list[Line2D]:
    """One run: a colour for each metric. Several: a colour for each run, a dash for each metric. Returns the legend."""
    factor = 100 if chart.unit.startswith("%") else 1
    axes.set_title(chart.title)
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    if len(runs) == 1:
        signs = _one_run(axes, chart, next(iter(runs.values())), factor)
    else:
        signs = _several_runs(axes, (chart.total,) if chart.total else chart.series, runs, factor)
    if chart.log:
        axes.set_yscale("log")
    elif chart.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
        if axes.get_ylim()[1] < chart.reaches:
            axes.set_ylim(top=chart.reaches)
    return signs


def _one_run(axes: Axes, chart: Chart, lines: Lines, factor: float) -> list[Line2D]:
    series = [one for one in chart.series if any(one.key in line for line in lines)]
    if chart.total:
        rows = [line for line in lines if all(one.key in line for one in series)]
        axes.stackplot([row["step"] for row in rows], [[row[one.key] for row in rows] for one in series])
    else:
        for one in series:
            _curve(axes, one, lines, factor)
    return [Line2D([], [], color=colour, label=one.label) for one, colour in zip(series, cycle(COLOURS), strict=False)]


def _several_runs(axes: Axes, parts: Sequence[Series], runs: Mapping[str, Lines], factor: float) -> list[Line2D]:
    signs = []
    dashes = list(zip(parts, cycle(DASHES), strict=False))
    for (name, lines), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        signs.append(Line2D([], [], color=colour, label=name))
        for one, dash in dashes:
            _curve(axes, one, lines, factor, color=colour, linestyle=dash)
    if len(parts) > 1:
        signs += [Line2D([], [], color="black", linestyle=dash, label=one.label) for one, dash in dashes]
    return signs


def _curve(axes: Axes, series: Series, lines: Lines, factor: float, **look: Any) -> None:
    """A metric over the steps that have it, with its interval as a band."""
    rows = [line for line in lines if series.key in line]
    steps = [row["step"] for row in rows]
    (curve,) = axes.plot(steps, [row[series.key] * factor for row in rows], marker="o" if series.low else "", **look)
    if series.low:
        low, high = ([row[key] * factor for row in rows] for key in (series.low, series.high))
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=curve.get_color())
