"""What a sweep's tables and figures show for known results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.scoring.versions import package_versions
from rl_engine.config.file import ConfigError
from rl_engine.drawing.style import COLOURS, rank_colour
from rl_engine.sweep.analysis import analyse, cells_left, curves_at
from rl_engine.sweep.cells import arms_of
from rl_engine.sweep.config import ScoreConfig
from rl_engine.sweep.figures import best_over, learning_curves, score_over_axis
from rl_engine.sweep.line_styles import line_styles_of
from rl_engine.sweep.report import COLUMNS, best_rows, curve_rows, redraw, score_rows, write_report
from rl_engine.sweep.results import Results, scores_of, thinned
from tests.helpers.paper_sweeps import made_up, paper_sweep, parabola
from tests.helpers.sweep_fake import sweep_of


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_rates_ratios_and_differences_of_a_known_sweep(mode: str, tmp_path: Path) -> None:
    sign = 1 if mode == "max" else -1
    config = paper_sweep(tmp_path, score={"metric": "eval/held_out/avg", "mode": mode})
    found = made_up(config, lambda arm, rate, seed: sign * parabola(arm, rate, seed))
    assert len(found) == cells_left(config, {}) == 3 * (5 + 3)
    analysis = analyse(config, found)
    # Three arms, four seeds at the best rate of each.
    assert analysis.spread
    assert analysis.spread.deviation == pytest.approx(np.std([0.05, -0.01, 0, 0.01], ddof=1))
    assert analysis.spread.freedom == 9
    assert "between the values (t, 9 d.f.)" in best_rows(config, analysis)[0]
    by_name = {report.arm.name: report.best for report in analysis.arms}
    rank1, full = by_name["rank 1"], by_name["full"]
    assert rank1 is not None
    assert full is not None
    assert (rank1.axis_value, full.axis_value) == (1e-3, 1e-4)
    assert rank1.best.value == pytest.approx(10**-2.9)
    assert full.best.value == pytest.approx(1e-4)
    assert full.comparison is None
    assert rank1.comparison is not None
    assert rank1.comparison.best_ratio.value == pytest.approx(10**1.1)
    low, high = rank1.comparison.best_ratio.interval or (math.nan, math.nan)
    assert low < 10**1.1 < high
    # Only confirming seeds count, as the seed that chose the rate was lucky. Rank 1's rate is a tenth of a decade off
    # its best.
    assert rank1.score.value == pytest.approx(sign * (0.92 - 0.1 * 0.1**2))
    assert rank1.seeds == 3
    # A curve is the mean over all seeds.
    steps, values = curves_at(config, arms_of(config)[0], 1e-3, found, config.score.metric)
    assert (steps, [len(row) for row in values]) == ([0, 3, 12], [4, 4, 4])
    # In pairs, the differences between seeds cancel.
    assert rank1.comparison.score_difference.value == pytest.approx(-sign * 0.001)
    assert rank1.comparison.score_difference.interval is None  # the same for every seed
    assert best_rows(config, analysis)[1][-1] == ("-0.001" if mode == "max" else "+0.001")


def test_a_rate_where_a_run_failed_is_not_the_best(tmp_path: Path) -> None:
    """A best rate at the edge of the axis is not an optimum."""

    def score(arm: str, rate: float, seed: int) -> float | None:
        if arm == "rank 1":
            return None if rate == 1e-3 else parabola(arm, rate, seed)
        return math.log10(rate) / 10 + seed / 1000 if arm == "rank 8" else None

    config = paper_sweep(tmp_path)
    analysis = analyse(config, made_up(config, score))
    rank1, rank8, full = (report.best for report in analysis.arms)
    assert rank1 is not None
    assert rank8 is not None
    assert full is None
    assert rank1.axis_value == 3e-3
    assert rank1.comparison is None
    assert (rank8.axis_value, rank8.best.value) == (1e-2, math.inf)
    shown = {row[0]: row for row in best_rows(config, analysis)}
    assert shown["rank 8"][2].startswith("beyond")
    assert "≥ 0.01" in shown["rank 8"][3]
    assert shown["full"][1] == "no value with all seeds"
    rank1_row = dict(zip(*score_rows(config, analysis)[:2], strict=True))
    # 0.92 − 0.1 (log10 0.003 + 2.9)², and the mean of 0.05, −0.01, 0 and 0.01 over the seeds.
    assert (rank1_row["0.001"], rank1_row["0.003"]) == ("1 failed", "0.918 (4)")


def test_a_failed_value_ends_a_good_range_and_a_missing_does_not(tmp_path: Path) -> None:
    """The scores still rise where runs begin to fail: the best rate is the last that learned, not one beyond it."""

    def score(arm: str, rate: float, seed: int) -> float | None:
        return None if rate > 1e-3 else math.log10(rate) / 10 + seed / 1000

    config = paper_sweep(tmp_path)
    found = made_up(config, score)
    failed, _, full = (report.best for report in analyse(config, found).arms)
    assert failed is not None
    assert failed.axis_value == 1e-3
    assert failed.best.value == pytest.approx(1e-3)
    assert failed.good_range[1] == pytest.approx(1e-3)
    # The reference's axis ends at 1e-3, where its score still rises.
    assert full is not None
    assert full.best.value == math.inf
    rank1, *_ = best_rows(config, analyse(config, found))[1:]
    assert "– 0.001: 0." in rank1[3]
    # Nothing is known of values whose runs are not done: the best is beyond those that are.
    done = {name: result for name, result in found.items() if result.score is not None}
    rank1, *_ = best_rows(config, analyse(config, done))[1:]
    assert rank1[2].startswith("beyond")
    assert "≥ 0.001: ≥ " in rank1[3]
    assert rank1[6] == "unknown"  # the ratio of two values that are both beyond


def test_an_arm_is_compared_with_the_reference_at_its_batch_size(tmp_path: Path) -> None:
    config = sweep_of(
        grid={"train.problems_per_step": [8, 32], "optim.lr": [1e-4, 1e-3, 1e-2]},
        arms={"lora": {}, "full": {"method": "full"}},
        reference="full",
        output_dir=str(tmp_path),
    )

    def score(arm: str, rate: float, seed: int) -> float:
        level = {"lora, train.problems_per_step=32": 0.7, "full, train.problems_per_step=32": 0.8}.get(arm, 0.9)
        return level - 0.1 * abs(math.log10(rate) + 3)

    found = made_up(config, score)
    analysis = analyse(config, found)
    differences = {
        report.arm.name: round(report.best.comparison.score_difference.value, 6)
        for report in analysis.arms
        if report.best and report.best.comparison
    }
    assert differences == {"lora, train.problems_per_step=8": 0.0, "lora, train.problems_per_step=32": -0.1}
    drawn = best_over(config, analysis, "train.problems_per_step").axes[0].get_lines()
    lines = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), line.get_linestyle()) for line in drawn]
    (lora_x, lora_y, _), (_, full_y, full_style) = (line for line in lines if line[2] != "None")
    assert lora_x.tolist() == [8, 32]
    assert lora_y.tolist() == pytest.approx([0.9, 0.7])
    assert full_y.tolist() == pytest.approx([0.9, 0.8])
    assert full_style == "--"
    # With two references, neither at its batch size, an arm is compared with none.
    config = sweep_of(
        grid={"train.problems_per_step": [8, 16, 32], "optim.lr": [1e-3]},
        arms={"lora": {}, "full": {"method": "full", "train.problems_per_step": [8, 16]}},
        reference="full",
        output_dir=str(tmp_path),
    )
    analysis = analyse(config, made_up(config, score))
    assert [bool(report.best and report.best.comparison) for report in analysis.arms[:3]] == [True, True, False]
    assert [row[-2:] for row in best_rows(config, analysis)[3:5]] == [["no full at the same values", ""], ["", ""]]
    only_lora = {name: one for name, one in made_up(config, score).items() if one.arm.startswith("lora")}
    assert [row[-2:] for row in best_rows(config, analyse(config, only_lora))[1:3]] == [["", ""], ["", ""]]  # not yet


def test_the_good_range_and_the_intervals_of_a_known_curve(tmp_path: Path) -> None:
    """y = 0.9 − 0.1 x² at x = −1, 0 and 1, in decades of the rate, over four seeds whose spread is 0.0082."""
    config = sweep_of(grid={"optim.lr": [1e-4, 1e-3, 1e-2]}, seeds=[0, 1, 2, 3], output_dir=str(tmp_path))
    offsets = (-0.01, 0.0, 0.0, 0.01)
    found = made_up(config, lambda arm, rate, seed: 0.9 - 0.1 * (math.log10(rate) + 3) ** 2 + offsets[seed])
    analysis = analyse(config, found)
    (best,) = (report.best for report in analysis.arms)
    assert best
    assert analysis.spread
    # The lines fall by 0.1 per decade, hence by the tolerance of 0.02 in a fifth of one.
    assert best.good_range == pytest.approx((10**-3.2, 10**-2.8))
    assert best.good_decades.value == pytest.approx(0.4)
    # To first order the vertex moves by (y₊ − y₋) / (2 · 0.2); each mean of four has half the spread, and t is 2.2622.
    assert best.best.interval
    half = 2.2622 * math.sqrt(2) * analysis.spread.deviation / 2 / 0.4
    assert np.log10(best.best.interval) == pytest.approx([-3 - half, -3 + half], abs=0.15 * half)
    # Where the scores only fall, the best value is below the axis, not 0.
    falls = analyse(config, made_up(config, lambda arm, rate, seed: -math.log10(rate) / 10))
    assert falls.arms[0].best
    assert falls.arms[0].best.best.value == -math.inf
    assert best_rows(config, falls)[1][2].startswith("beyond")


def test_ranks_and_full_look_the_same_in_every_sweep(tmp_path: Path) -> None:
    """A rank looks the same beside other ranks, in a grid and with another reference. An arm that sets more than a rank
    does not have a rank's look."""
    arms = arms_of(config := paper_sweep(tmp_path))
    rank1, rank8, full = line_styles_of(config, arms).values()
    assert (rank1["color"], rank8["color"], full["color"]) == (rank_colour(1), rank_colour(8), "black")
    assert [look["linestyle"] for look in (rank1, rank8, full)] == ["-", "-", "--"]
    grid = {"lora.rank": [8, 1], "train.problems_per_step": [8, 32], "optim.lr": [1e-3]}
    config = sweep_of(grid=grid, output_dir=str(tmp_path))
    looks = list(line_styles_of(config, arms_of(config)).values())
    eights, ones = looks[:2], looks[2:]
    assert [look["color"] for look in (*eights, *ones)] == [rank_colour(8)] * 2 + [rank_colour(1)] * 2
    assert {look["marker"] for look in eights} != {look["marker"] for look in ones}
    assert [look["markerfacecolor"] for look in eights] == [rank_colour(8), "white"]
    named = {
        "attention": {"lora.rank": 8, "lora.targets": "attention"},
        "all": {"lora.rank": 8},
        "whole": {"method": "full"},
    }
    # A line drawn along the ranks does not have the colour of one of them.
    config = sweep_of(grid={"lora.rank": [1, 8], "optim.lr": [1e-3]}, output_dir=str(tmp_path))
    (along,) = line_styles_of(config, arms_of(config)[:1], "lora.rank").values()
    assert along["color"] == COLOURS[0]
    config = paper_sweep(tmp_path, arms=named, reference="attention")
    attention, every, whole = line_styles_of(config, arms_of(config)).values()
    assert (attention["color"], attention["linestyle"]) == (COLOURS[0], "--")
    assert (every["color"], every["linestyle"]) == (rank_colour(8), "-")
    assert (whole["color"], whole["linestyle"]) == ("black", "-")


def test_a_metric_known_before_and_after_alone_is_no_curve(tmp_path: Path) -> None:
    config = paper_sweep(tmp_path, curves=["reward/mean", "made/up"])
    ends = {config.score.metric: [(0, 0.5), (12, 0.9)], "reward/mean": [(1, 0.1), (2, 0.2), (3, 0.4)]}
    found = {name: replace(result, curves=ends) for name, result in made_up(config, parabola).items()}
    (axes,) = learning_curves(config, found, analyse(config, found)).axes
    assert (axes.get_title("left"), axes.get_ylabel()) == ("Reward", "mean of completions")
    del ends["reward/mean"]
    (axes,) = learning_curves(config, found, analyse(config, found)).axes
    assert (axes.get_title("left"), axes.get_ylabel()) == ("Accuracy on held-out problems", "%")


def test_a_sweep_without_results_has_a_table_and_no_figures(tmp_path: Path) -> None:
    """The sweep was stopped before the first result."""
    write_report(sweep_of(grid={"optim.lr": [1e-3]}, output_dir=str(tmp_path)), {})
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "table.md"}
    assert "| quickstart | no value with all seeds |" in (tmp_path / "table.md").read_text()


def test_a_diverged_loss_does_not_flatten_the_others(tmp_path: Path) -> None:
    config = paper_sweep(tmp_path, score={"metric": "eval/held_out/avg", "mode": "min"})
    found = made_up(config, lambda arm, rate, seed: 12.0 if rate == 1e-2 else 0.3 + abs(math.log10(rate) + 3) / 100)
    axes = score_over_axis(config, found, analyse(config, found)).axes[0]
    # From the lowest, 0.3, to the highest that is not above the untrained model's 0.5, plus a twentieth at each end of
    # the logarithmic scale.
    assert axes.get_ylim() == pytest.approx((0.3 * (0.3 / 0.32) ** 0.05, 0.32 * (0.32 / 0.3) ** 0.05))
    (before,) = (line for line in axes.get_lines() if line.get_label() == "before training: 50.0%")
    assert np.asarray(before.get_ydata()).tolist() == [0.5, 0.5]
    assert any(12.0 in np.asarray(line.get_ydata()) for line in axes.get_lines())
    # A first evaluation after step 0 is not the untrained model's.
    late = {name: replace(result, curves={config.score.metric: [(3, 0.5)]}) for name, result in found.items()}
    lines = score_over_axis(config, late, analyse(config, late)).axes[0].get_lines()
    assert not any(str(line.get_label()).startswith("before training") for line in lines)


def test_figures_draw_means_with_all_seeds_and_their_interval(tmp_path: Path) -> None:
    """Seeds add 0, 0.01 and 0.05 to what an arm scores at each rate, so a mean is 0.02 above the lowest of them."""
    grid = {"train.problems_per_step": [8, 32], "optim.lr": [1e-4, 1e-3, 1e-2]}
    config = sweep_of(grid=grid, seeds=[0, 1, 2], output_dir=str(tmp_path))
    offsets = (0.0, 0.01, 0.05)
    found = made_up(config, lambda arm, rate, seed: 0.8 - 0.1 * abs(math.log10(rate) + 3) + offsets[seed])
    analysis = analyse(config, found)
    axes = score_over_axis(config, found, analysis).axes[0]
    assert np.asarray(axes.get_lines()[0].get_ydata()).tolist() == pytest.approx([0.72, 0.82, 0.72])
    band: Any = axes.collections[0].get_paths()[0].vertices
    assert {round(float(y), 6) for _, y in band} == {0.7, 0.75, 0.8, 0.85}
    assert axes.yaxis.get_major_formatter()(0.25) == "25"
    (curves,) = learning_curves(config, found, analysis).axes
    assert np.asarray(curves.get_lines()[0].get_ydata()).tolist() == pytest.approx([0.5, 0.6, 0.82])
    drawn: Any = best_over(config, analysis, "train.problems_per_step").axes[0].containers[0]
    bars = [[y for _, y in segment] for segment in drawn[2][0].get_segments()]
    assert bars == [pytest.approx(report.best.score.interval) for report in analysis.arms if report.best]


def test_the_table_over_steps_has_means_of_what_all_seeds_have(tmp_path: Path) -> None:
    config = paper_sweep(tmp_path, seeds=[0, 1], confirm_seeds=[], grid={"optim.lr": [1e-3, 3e-3]})
    found = made_up(config, lambda arm, rate, seed: None if rate == 3e-3 else 0.7 + seed / 10)
    name = next(name for name, r in found.items() if (r.arm, r.axis_value, r.seed) == ("rank 1", 1e-3, 1))
    found[name] = replace(found[name], curves={config.score.metric: [(0, 0.4), (12, 0.8)]})
    titles, *rows = curve_rows(config, found)
    assert titles == ["arm", "optim.lr", "0", "3", "12"]
    assert rows[0] == ["rank 1", "0.001", "0.450", "", "0.750"]
    assert rows[1] == ["rank 8", "0.001", "0.500", "0.600", "0.750"]
    # A value with one of its two seeds is not known yet, and the other value failed.
    assert analyse(config, found).arms[0].best
    assert analyse(config, {key: found[key] for key in found if key != name}).arms[0].best is None
    long = [(step, 1.0) for step in range(99)]
    many = {name: replace(result, curves={config.score.metric: long}) for name, result in found.items()}
    titles = curve_rows(config, many)[0]
    assert len(titles) <= 2 + COLUMNS + 1
    assert (titles[2], titles[-1]) == ("0", "98")
    ends = {name: replace(result, curves={config.score.metric: [(0, 1.0), (9, 1.0)]}) for name, result in found.items()}
    assert curve_rows(config, ends) == []


def test_table_and_figures_come_again_from_the_summary_alone(tmp_path: Path) -> None:
    config = paper_sweep(tmp_path / "sweep")
    config.output.mkdir()
    found = made_up(config, lambda *cell: None if cell == ("rank 8", 1e-2, 0) else parabola(*cell))
    write_report(config, found)
    names = {"table.md", *(f"{n}.{e}" for n in ("score_against_rate", "learning_curves") for e in ("png", "svg"))}
    written = {path.name: path.read_bytes() for path in config.output.iterdir()}
    assert set(written) == {"summary.json", *names}
    facts = json.loads(written["summary.json"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [result["cell"] for result in facts["results"]] == list(found)
    assert facts["environment"]["versions"] == package_versions()
    assert {"python", "torch", "deepspeed", "peft", "math-verify"} <= package_versions().keys()
    assert len(written["summary.json"]) < 20_000
    table = written["table.md"].decode()
    assert "| rank 1 | 0.001 | 0.0013 (" in table
    assert " 23 runs done in 0.01 hours of runs, 1 failed." in table  # a second each
    assert "- rank-8_optim.lr=0.01_seed=0: failed: out of luck" in table

    moved = tmp_path / "elsewhere" / "results.json"
    moved.parent.mkdir()
    moved.write_bytes(written["summary.json"])
    redraw(moved)
    again = {path.name: path.read_bytes() for path in moved.parent.iterdir() if path != moved}
    assert again == {name: written[name] for name in names}
    facts["config"]["set"]["optim.lr"] = 1.0  # a value that would be refused in a sweep about to run
    moved.write_text(json.dumps(facts))
    assert redraw(moved)[0].set["optim.lr"] == 1.0
    with pytest.raises(ConfigError, match="not the summary of a sweep"):
        redraw(config.output / "table.md")


def test_curves_keep_their_ends_and_scores_their_definition() -> None:
    curve = [(step, step / 3) for step in range(1000)]
    thin = thinned(curve, most=10)
    assert [step for step, _ in thin] == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert thin[1][1] == 37.0
    assert thinned([(0, math.nan), (1, 2 / 3)]) == [(1, 0.666667)]
    lines = [{"step": i, "s": value} for i, value in enumerate((0.1, 0.9, 0.5, 0.7))]

    def score(**how: Any) -> tuple[float, float]:
        return scores_of(lines, ScoreConfig.model_validate({"metric": "s", **how}))

    assert score() == (0.7, 0.9)
    assert score(at="best", mode="min") == (0.1, 0.1)
    assert score(at=3)[0] == pytest.approx((0.9 + 0.5 + 0.7) / 3)
    lines.insert(3, {"step": 2, "s": math.nan})
    lines.insert(0, {"step": 0, "s": math.inf})
    assert score(at="last") == (0.7, 0.9)
    with pytest.raises(ValueError, match="s is infinite or NaN in one of the last 2 evaluations"):
        score(at=2)
    lines.append({"step": 4, "s": math.nan})
    with pytest.raises(ValueError, match="the last value of s is nan"):
        score(at="best")
    lines.append({"step": 5, "s": math.inf})
    with pytest.raises(ValueError, match="the last value of s is inf"):
        score(at="best")


def test_whatever_is_not_done_is_forgotten_for_another_try(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    made: Any = made_up(paper_sweep(tmp_path), parabola).values()
    for status, result in zip(("done", "failed", "timeout"), made, strict=False):
        results.add(replace(result, cell=status, status=status))
    results.forget_failed()
    assert list(results.by_cell) == ["done"]
