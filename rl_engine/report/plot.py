"""metrics.jsonl → figures: `curves.png` in a run directory, and each chart of one or more runs for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rl_engine.drawing.style import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    Sign,
    count_along,
    legend_below,
    legends_under,
    name_panel,
    paper_figure,
    paper_style,
    save_figure,
)
from rl_engine.report.charts import COT_LENGTH, REWARD, Chart, Series, accuracy_chart, charts_of, suites_of
from rl_engine.run.origin.starts import read_starts
from rl_engine.run.records import ASKED, PLOT, read_metrics, with_asking
from rollout.files.ownership import figure_metadata

Lines = Sequence[Mapping[str, float]]


def plot_run(run: Path) -> Path:
    """Draw `curves.png` into the run's directory: reward, accuracy on every suite, CoT length."""
    lines = with_asking(read_metrics(run), read_starts(run))
    accuracy = accuracy_chart(*suites_of({key for line in lines for key in line}))
    with paper_style():
        figure, panels = paper_figure(3)
        signs = {
            axes: draw_chart(axes, chart, {run.name: lines})
            for axes, chart in zip(panels, (REWARD, accuracy, COT_LENGTH), strict=True)
        }
        legends_under(figure, {axes: some for axes, some in signs.items() if len(some) > 1})
        save_figure(figure, run / PLOT)
    return run / PLOT


def plot_charts(runs: Mapping[str, Lines], directory: Path, file_format: str) -> list[Path]:
    """Draw each chart with these runs overlaid, as `<chart>.png` or `.svg`, as wide as a column of a paper."""
    directory.mkdir(parents=True, exist_ok=True)
    files = chart_files(runs, directory, file_format)
    for chart, file in zip(_charts(runs), files, strict=True):
        with paper_style():
            figure, (axes,) = paper_figure()
            signs = draw_chart(axes, chart, runs)
            if len(signs) > 1:
                legend_below(figure, signs)
            save_figure(figure, file, metadata=figure_metadata(file))
    return files


def chart_files(runs: Mapping[str, Lines], directory: Path, file_format: str) -> list[Path]:
    """The files that `plot_charts` writes."""
    return [directory / f"{chart.name}.{file_format}" for chart in _charts(runs)]


def _charts(runs: Mapping[str, Lines]) -> list[Chart]:
    return charts_of({key for lines in runs.values() for line in lines for key in line})


def draw_chart(axes: Axes, chart: Chart, runs: Mapping[str, Lines]) -> list[Sign]:
    """Draw a chart and return its legend. One run: a colour and a dash pattern for each metric. Several runs: a colour
    and a marker for each run, a dash pattern for each metric."""
    factor = 100 if chart.unit.startswith("%") else 1
    name_panel(axes, chart.title, chart.unit)
    count_along(axes, "step")
    if len(runs) > 1:
        signs = _several_runs(axes, (chart.total,) if chart.total else chart.series, runs, factor)
    elif chart.total:
        signs = _parts(axes, chart, next(iter(runs.values())))
    else:
        signs = _one_run(axes, chart, next(iter(runs.values())), factor)
    if 0 <= axes.dataLim.width < 1:  # one step, with ticks at parts of it
        middle = (axes.dataLim.x0 + axes.dataLim.x1) / 2
        axes.set_xlim(middle - 1, middle + 1)
    if chart.log:
        axes.set_yscale("log")
    elif chart.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
        if axes.get_ylim()[1] < chart.reaches:
            axes.set_ylim(top=chart.reaches)
    return signs


def _one_run(axes: Axes, chart: Chart, lines: Lines, factor: float) -> list[Sign]:
    drawn = [one for one in chart.series if any(one.key in line for line in lines)]
    signs: list[Sign] = []
    for one, colour, dash, marker in zip(drawn, cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False):
        # Metrics known at only a few steps get markers there.
        few = sum(one.key in line for line in lines) < max(3, len(lines) / 2)
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": dash,
            "marker": marker if few or len(drawn) > len(DASHES) else "",
        }
        _curve(axes, one, lines, factor, **look)
        signs.append(Line2D([], [], label=one.label, **look))
    return signs


def _parts(axes: Axes, chart: Chart, lines: Lines) -> list[Sign]:
    """Curves that are parts of a whole, stacked."""
    drawn = [one for one in chart.series if any(one.key in line for line in lines)]
    rows = [line for line in lines if all(one.key in line for one in drawn)]
    looks: list[dict[str, Any]] = [
        {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3, "label": one.label}
        for one, colour, hatch in zip(drawn, cycle(COLOURS), cycle(HATCHES), strict=False)
    ]
    steps = [row["step"] for row in rows]
    if len(rows) == 1:  # an area without a width cannot be seen
        steps, rows = [steps[0] - 0.2, steps[0] + 0.2], [*rows, *rows]
    areas = axes.stackplot(steps, [[row[one.key] for row in rows] for one in drawn])
    for area, look in zip(areas, looks, strict=True):
        area.set(**look)
    return [Patch(**look) for look in looks]


def _several_runs(axes: Axes, parts: Sequence[Series], runs: Mapping[str, Lines], factor: float) -> list[Sign]:
    signs: list[Sign] = []
    dashes = list(zip(parts, cycle(DASHES), strict=False))
    for (name, lines), colour, marker in zip(runs.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        signs.append(Line2D([], [], color=colour, marker=marker, label=name))
        for one, dash in dashes:
            _curve(axes, one, lines, factor, color=colour, marker=marker, linestyle=dash)
    if len(parts) > 1:
        signs += [Line2D([], [], color="black", linestyle=dash, label=one.label) for one, dash in dashes]
    return signs


def _curve(axes: Axes, series: Series, lines: Lines, factor: float, **look: Any) -> None:
    """Draw a metric over the steps that have it, with its interval as a band. Scores that were asked otherwise are not
    joined."""
    rows = [line for line in lines if series.key in line]
    for _, together in groupby(rows, lambda row: row.get(ASKED) if series.key.startswith("eval/") else None):
        _joined(axes, series, [*together], factor, look)


def _joined(axes: Axes, series: Series, rows: Lines, factor: float, look: Mapping[str, Any]) -> None:
    steps = [row["step"] for row in rows]
    values = [row[series.key] * factor for row in rows]
    # A marker at every step would hide a long curve.
    (curve,) = axes.plot(steps, values, markevery=max(1, len(rows) // 10), **look)
    if series.low:
        low, high = ([row.get(key, row[series.key]) * factor for row in rows] for key in (series.low, series.high))
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=curve.get_color())
        if len(rows) == 1:  # a band without a width cannot be seen
            axes.vlines(steps, low, high, color=curve.get_color())
