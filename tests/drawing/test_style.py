"""The one style of figures: what a run, a sweep and an adapter draw can be read in a column of a paper, and in grey."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from rl_engine.drawing.style import (
    COLOURS,
    FULL_COLOUR,
    count_along,
    legend_below,
    legends_under,
    name_panel,
    paper_figure,
    paper_style,
    rank_colour,
    save_figure,
)
from rl_engine.report.charts import COT_LENGTH, REWARD, accuracy_chart, charts_of
from rl_engine.report.plot import draw_chart, plot_charts
from rl_engine.sweep.figures import figures_of
from rl_engine.sweep.report import read_summary
from tests.helpers.figures import assert_reads_in_a_paper, draw

REGRET = sorted((Path(__file__).parents[2] / "docs" / "regret").glob("*/summary.json"))
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def luminance(colour: str) -> float:
    """Relative, as WCAG has it: 0 for black, 1 for white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_the_higher_a_rank_the_darker_and_none_is_another_colour() -> None:
    colours = [rank_colour(rank) for rank in RANKS]
    shades = [luminance(colour) for colour in colours]
    assert shades == sorted(shades, reverse=True)
    assert len({*colours, *COLOURS, FULL_COLOUR}) == len(RANKS) + len(COLOURS) + 1
    # Of white at most a third, as is asked of graphics for all to see them (WCAG 1.4.11).
    assert max(shades) < 1.05 / 2.9 - 0.05
    assert rank_colour(4096) == rank_colour(512)


@pytest.mark.parametrize("panels", range(1, 7))
def test_a_figure_of_any_number_of_panels_is_read(panels: int) -> None:
    with paper_style():
        figure, all_axes = paper_figure(panels)
        for axes in all_axes:
            name_panel(axes, "The ratio of probabilities in the loss, at its largest", "nats/token")
            count_along(axes, "step")
            for dash in ("-", "--", ":"):
                axes.plot([0, 1], [0, 1], dash, label=f"an arm with a name that is long, {dash}")
        draw(figure)
        heights = [axes.get_window_extent().height for axes in all_axes]
        if panels % 2:
            legend_below(figure, all_axes[0].get_legend_handles_labels()[0])
        else:
            legends_under(figure, {axes: axes.get_legend_handles_labels()[0] for axes in all_axes})
        assert_reads_in_a_paper(figure)
        # The legend takes nothing from the panels.
        assert [axes.get_window_extent().height for axes in all_axes] == pytest.approx(heights, rel=0.1)


def test_an_empty_legend_is_none_and_names_of_any_length_fit() -> None:
    with paper_style():
        figure, _ = paper_figure()
        legend_below(figure, [])
        assert figure.legends == []
        names = [f"runs/{'a-very-long-name-' * 3}of a run, {n}" for n in range(3)]
        legend_below(figure, [Line2D([], [], label=name, marker="os^"[n]) for n, name in enumerate(names)])
        assert_reads_in_a_paper(figure)


@pytest.mark.parametrize("name", ["lr=$1e-4$", "$\\frac$", "100$ of a_b^c$", "_of mine", "a\\$b", "<b>&amp;"])
def test_names_are_drawn_as_they_are_written(name: str, tmp_path: Path) -> None:
    """Neither as a formula, which may be none, nor left out of the legend."""
    score = {"eval/it/avg": 0.5, "eval/it/low": 0.4, "eval/it/high": 0.6}
    runs = {each: [{"step": 1, **score}] for each in (name, "other")}
    for file_format in ("svg", "png"):
        assert plot_charts(runs, tmp_path, file_format)
    with paper_style():
        figure, (axes,) = paper_figure()
        name_panel(axes, name, "%")
        legend_below(figure, draw_chart(axes, accuracy_chart("it"), runs))
        draw(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [name, "other"]
    named = [text for text in figure.findobj(Text) if text.get_text() in (name, "other", axes.get_title("left"))]
    assert len(named) == 3
    assert not any(text.get_parse_math() for text in named)


@pytest.mark.parametrize("summary", REGRET, ids=lambda path: path.parent.name)
def test_the_figures_of_the_recorded_sweeps_are_read(summary: Path) -> None:
    config, found, analysis = read_summary(summary)
    with paper_style():
        for figure in figures_of(config, found, analysis).values():
            assert_reads_in_a_paper(figure)


@pytest.mark.parametrize(("runs", "steps"), [(1, 1), (3, 2), (3, 25), (1, 1000)])
def test_the_curves_of_runs_are_read(runs: int, steps: int) -> None:
    keys = every_key() | {series.key for chart in charts_of(every_key()) for series in chart.series} | {"time/step_s"}
    lines = [{"step": step, **dict.fromkeys(keys, 0.3 + step / 2000)} for step in range(steps)]
    with paper_style():
        for chart in charts_of(keys):
            figure, (axes,) = paper_figure()
            signs = draw_chart(axes, chart, {f"run {n}": lines for n in range(runs)})
            legend_below(figure, signs)
            assert_reads_in_a_paper(figure)


def every_key() -> set[str]:
    names = {f"reward/verdict/{name}" for name in ("timeout", "error", "no_answer")}
    suites = {f"eval/{suite}/{what}" for suite in ("gsm8k", "aime2024") for what in ("avg", "low", "high")}
    return {"reward/mean", "completion/tokens_mean", "ratio/p50", "sampler/kl", "time/rollout_s", *names, *suites}


def test_a_runs_three_panels_are_read_with_several_suites() -> None:
    suites = ("aime2024", "aime2025", "gsm8k", "held_out", "math500")
    scores = [(n, f"eval/{suite}/{end}") for n, suite in enumerate(suites) for end in ("avg", "low", "high")]
    lines = [
        {
            "step": step,
            "reward/mean": step / 9,
            **{series.key: 30.0 + n for n, series in enumerate(COT_LENGTH.series)},
            **{key: (n + step) / 20 for n, key in scores},
        }
        for step in range(9)
    ]
    with paper_style():
        figure, panels = paper_figure(3)
        charts = (REWARD, accuracy_chart(*suites), COT_LENGTH)
        signs = {axes: draw_chart(axes, chart, {"run": lines}) for axes, chart in zip(panels, charts, strict=True)}
        legends_under(figure, {axes: some for axes, some in signs.items() if len(some) > 1})
        assert_reads_in_a_paper(figure)


def test_steps_are_whole_numbers_on_their_axis(tmp_path: Path) -> None:
    with paper_style():
        figure, (axes,) = paper_figure()
        draw_chart(axes, REWARD, {"run": [{"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": 0.2}]})
        figure.canvas.draw()
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    (file,) = plot_charts({"run": [{"step": 1, "reward/mean": 0.1}]}, tmp_path, "png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_metrics_and_runs_differ_in_grey() -> None:
    """Two metrics of one run and two runs of one metric differ in grey."""
    lines = [{"step": step, **{series.key: 1.0 * step for series in COT_LENGTH.series}} for step in range(3)]
    with paper_style():
        for runs in ({"one": lines}, {"one": lines, "two": lines}):
            _, (axes,) = paper_figure()
            draw_chart(axes, COT_LENGTH, runs)
            looks = [(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()]
            assert all(one != other for one, other in itertools.combinations(looks, 2))


def test_a_figure_replaces_an_earlier_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk half a figure took the place of the earlier one, and the error named no file."""
    file = tmp_path / "reward.svg"
    file.write_text("earlier", encoding="utf-8")

    def fills(_: Figure, path: Path, **__: object) -> None:
        path.write_text("ha", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    figure, _ = paper_figure()
    monkeypatch.setattr(Figure, "savefig", fills)
    with pytest.raises(OSError, match=rf"No space left on device: '{file}'"):
        save_figure(figure, file)
    assert file.read_text(encoding="utf-8") == "earlier"
    assert [*tmp_path.iterdir()] == [file]
