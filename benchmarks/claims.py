"""A sweep of the claims → a figure that the sweep cannot draw itself: the score over something other than its axis.

    python -m benchmarks.claims docs/regret/numbers/summary.json
    python -m benchmarks.claims docs/regret/batch_rank/summary.json

Both show the score of each arm at its best rate, with the interval over seeds from the sweep's table. They are drawn
from the summary alone, and written next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

from rl_engine.config import Config
from rl_engine.config.file import ConfigError, read_config
from rl_engine.drawing.style import COLOURS, legend_below, name_panel, paper_figure, paper_style
from rl_engine.plan.capacity import BITS_PER_EPISODE, BITS_PER_PARAMETER, trainable_parameters
from rl_engine.policy.base_model import load_meta_model
from rl_engine.report.charts import titles_of
from rl_engine.sweep.analysis import ArmReport
from rl_engine.sweep.cells import arguments_of, cell_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.figures import FORMATS
from rl_engine.sweep.line_styles import LineStyle, line_styles_of
from rl_engine.sweep.report import read_summary

BESIDE = 1.08
"""Horizontal offset, as a factor, between points of the same batch size, whose intervals would otherwise overlap."""


def settings_of(config: SweepConfig, report: ArmReport) -> Config:
    """The configuration of an arm's run, as the sweep would start it."""
    cell = cell_of(config, report.arm, report.points[0].axis_value, config.seeds[0])
    return read_config(Config, config.base, arguments_of(cell.overrides))


def score_over_numbers(config: SweepConfig, reports: Sequence[ArmReport]) -> Figure:
    """Score over the number of trained parameters: one line through the tiny adapters, one through the ranks, and a
    mark where the run's episodes would fill the capacity."""
    figure, (axes,) = paper_figure()
    configs = {report.arm.name: settings_of(config, report) for report in reports}
    meta_model = load_meta_model(next(iter(configs.values())).model)
    kinds = {"few numbers (lora.init tiny)": True, "plain adapters": False}
    for (label, tiny), colour, marker in zip(kinds.items(), COLOURS, "os", strict=False):
        own = [report for report in reports if configs[report.arm.name].lora.is_tiny == tiny]
        numbers = [trainable_parameters(configs[report.arm.name], meta_model) for report in own]
        with_interval(axes, numbers, own, {"color": colour, "marker": marker, "label": label})
        for number, report in zip(numbers, own, strict=True):
            if not tiny and report.best:
                place = (number, report.best.score.value)
                axes.annotate(report.arm.name, place, xytext=(0, 6), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("trained numbers")
    axes.margins(0.07, 0.12)
    one = next(iter(configs.values()))
    episodes = one.train.steps * one.train.problems_per_step * one.sampling.n
    filled = episodes * BITS_PER_EPISODE / BITS_PER_PARAMETER
    label = f"filled by {episodes:,} episodes, at 1 bit each and 2 a number"
    axes.axvline(filled, color="grey", linestyle="--", linewidth=1, label=label)
    return figure


def score_over_batch(config: SweepConfig, reports: Sequence[ArmReport]) -> Figure:
    """Score over problems per step, with one line for each rank and for full fine-tuning."""
    figure, (axes,) = paper_figure()
    styles = line_styles_of(config, [report.arm for report in reports])
    lines: dict[str, list[tuple[int, ArmReport]]] = {}
    for report in reports:
        problems = settings_of(config, report).train.problems_per_step
        lines.setdefault(report.arm.family.partition(",")[0], []).append((problems, report))
    for number, (label, points) in enumerate(lines.items()):
        own = [report for _, report in points]
        aside = BESIDE ** (number - (len(lines) - 1) / 2)
        with_interval(axes, [aside * place for place, _ in points], own, {**styles[own[0].arm.name], "label": label})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({one for points in lines.values() for one, _ in points})))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("problems per step, at equal samples")
    return figure


def with_interval(axes: Axes, places: Sequence[float], reports: Sequence[ArmReport], look: LineStyle) -> None:
    """Draw the scores of the arms that have one, with 95 % intervals over seeds."""
    found = [(place, report.best.score) for place, report in zip(places, reports, strict=True) if report.best]
    heights = [score.value for _, score in found]
    ends = [score.interval or (score.value, score.value) for _, score in found]
    errors = [[height - low for height, (low, _) in zip(heights, ends, strict=True)]]
    errors += [[high - height for height, (_, high) in zip(heights, ends, strict=True)]]
    axes.errorbar([place for place, _ in found], heights, yerr=errors, capsize=2, **look)


def main(summary: Annotated[Path, typer.Argument(help="summary.json of sweep_numbers or sweep_batch_rank.")]) -> None:
    """Draw the figure of a sweep that its own figures cannot show."""
    try:
        config, found, analysis = read_summary(summary)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    few = any("lora.numbers" in report.arm.overrides for report in analysis.arms)
    name, draw = ("score_against_numbers", score_over_numbers) if few else ("score_against_batch", score_over_batch)
    with paper_style():
        figure = draw(config, analysis.arms)
        (axes,) = figure.axes
        before = fmean(result.curves[config.score.metric][0][1] for result in found.values() if result.curves)
        axes.axhline(before, color="grey", linestyle=":", linewidth=1, label=f"before training: {before:.1%}")
        title, unit = titles_of(config.score.metric)
        name_panel(axes, f"{title}\nat the best learning rate", unit)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 1.0))  # an interval over two seeds may extend beyond the possible range
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        legend_below(figure, axes.get_legend_handles_labels()[0])
        for ending, options in FORMATS.items():
            figure.savefig(summary.parent / f"{name}.{ending}", **options)


if __name__ == "__main__":
    typer.run(main)
