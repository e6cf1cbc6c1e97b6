"""What the page of a run shows, for whole runs and for damaged ones."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.report import __main__ as command
from rl_engine.report.charts import accuracy_chart, charts_of
from rl_engine.report.origins import settings_of_its_own
from rl_engine.report.page import names_of, page_of, read_runs, write_report
from rl_engine.report.plot import draw_chart, plot_charts, plot_run
from rl_engine.report.shown_run import read_run
from rl_engine.report.tables import changes_of, conditions_of, differences_of, overview_of
from rl_engine.report.warnings import warnings_of
from rl_engine.run.records import METRICS, Records
from tests.helpers.reported import TIMES, embedded_data, sampled
from tests.helpers.run_directories import evaluated, publish, record_step, start_run


def test_the_directory_of_a_sweep_is_not_taken_for_a_runs(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    said = CliRunner().invoke(command.app, [str(tmp_path)]).output
    assert said.endswith(f"there is no {tmp_path}/config.yaml; its cells' runs are {tmp_path}/cells/*/run\n")


def test_what_a_model_writes_cannot_leave_its_place(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!-- <script> & ' \" {{ 7 * 7 }}\u2028"
    sampled(tmp_path, [["<b>id</b>"]], text=hostile)
    page = page_of(read_runs([tmp_path], 1))
    assert page.count("</script>") == 2
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<b>id" not in page
    data = embedded_data(page)
    assert data["runs"][0]["groups"][0]["completions"][0]["text"] == hostile
    assert data["runs"][0]["groups"][0]["problem_id"] == "<b>id</b>"


def test_metrics_become_columns_with_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = start_run(tmp_path)
    records.metrics({"step": 0, "adapter/version": 0, "policy/entropy": 0.25})
    for step in (1, 2, 3, 4, 5):
        records.metrics({"step": step, "adapter/version": step, "loss": math.nan if step == 2 else 1 / 3})
    metrics = embedded_data(page_of(read_runs([tmp_path], 1)))["runs"][0]["metrics"]
    assert metrics["step"] == [0, 1, 2, 3, 4, 5]
    assert metrics["loss"] == [None, 0.33333333, None, 0.33333333, 0.33333333, 0.33333333]
    assert metrics["policy/entropy"] == [0.25, None, None, None, None, None]
    monkeypatch.setattr("rl_engine.report.page.LINES", 3)
    thinned = embedded_data(page_of(read_runs([tmp_path], 1)))["runs"][0]["metrics"]
    assert thinned["step"] == [0, 2, 4, 5]


def test_adapters_come_with_step_score_and_marks(tmp_path: Path) -> None:
    records = start_run(tmp_path)
    first = evaluated(tmp_path, "aime2024", 0, 0.1)
    records.metrics({"step": 0, "adapter/version": 0, **first})
    for version in (1, 2):
        publish(tmp_path, version)
        record_step(records, version, {}, {**TIMES, **evaluated(tmp_path, "aime2024", version, 0.4 - 0.1 * version)})
    (tmp_path / "adapters" / "best").symlink_to("v000001")
    (tmp_path / "evals" / "comparison.json").write_text('{"suites": {}}')
    run = read_run(tmp_path, problems=1, budget_bytes=0)
    (condition,) = conditions_of(run)
    assert condition == ("aime2024, version 1", "30 problems × 16, temperature 1, ≤ 4,096 tokens")
    rows = [(a.key, a.step, a.manifest is None, a.is_best, a.is_latest, a.scores[condition].avg) for a in run.adapters]
    assert rows == [
        ("policy-v000000", 0, True, False, False, 0.1),
        ("policy-v000001", 1, False, True, False, pytest.approx(0.3)),
        ("policy-v000002", 2, False, False, True, pytest.approx(0.2)),
    ]
    (change,) = changes_of([run])
    assert (change.first["avg"], change.last["step"], change.best["step"]) == (0.1, 2, 1)
    page = page_of([run])
    assert "★ best" in page
    assert "30.0 % <small>(25.0–35.0)</small>" in page


def test_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    start_run(tmp_path / "one" / "run", "seed=1")
    start_run(tmp_path / "two" / "run", "seed=1", "loss.kl_coef=0.5")
    runs = read_runs([tmp_path / "one" / "run", tmp_path / "two" / "run"], 1)
    assert differences_of(runs) == {"loss.kl_coef": ["0.0", "0.5"]}
    # An earlier version had no such keys: a value equal to today's default is no difference, another one is.
    older = {key: value for key, value in runs[0].settings.items() if not key.startswith("loss.")}
    before = differences_of([replace(runs[0], settings=older), *runs[1:]])
    assert before == {"loss.kl_coef": ["—", "0.5"]}
    assert [run["name"] for run in embedded_data(page_of(runs))["runs"]] == ["one/run", "two/run"]


def test_a_run_is_called_by_the_part_of_its_path_that_differs(tmp_path: Path) -> None:
    for name in ("a/cell/run", "b/cell/run", "other"):
        start_run(tmp_path / name)
    (a, b, other) = (tmp_path / name for name in ("a/cell/run", "b/cell/run", "other"))
    assert names_of(read_runs([a, b], 1)) == ["a/cell/run", "b/cell/run"]
    assert names_of(read_runs([a, other], 1)) == ["run", "other"]
    assert names_of(read_runs([a], 1)) == ["run"]
    assert names_of(read_runs([a, a], 1)) == [str(a), str(a)]


@pytest.mark.parametrize(
    ("length", "steps"), [("train.steps=80 train.epochs=null", "80 of 80"), ("train.epochs=1", "80")]
)
def test_a_supervised_run_has_a_page(length: str, steps: str, tmp_path: Path) -> None:
    """Its metrics have no adapter version, no sampling and no named objective, and it may count epochs."""
    settings = ["data.path=x.jsonl", *length.split(), f"output_dir={tmp_path / 'sft'}", "log.tensorboard=false"]
    records = Records(tmp_path / "sft", read_config(SftConfig, "sft_jsonl.yaml", settings))
    records.open(-1)
    for step in (0, 80):
        publish(tmp_path / "sft", step)
        measured = {"loss": 1.0, "time/step_s": 1.0, "throughput/tokens_per_s": 1234.0} if step else {}
        records.metrics({"step": step, "tokens": 10 * step, "test/log_loss": 4.0 - step / 40, **measured})
    (run,) = read_runs([tmp_path / "sft"], 1)
    assert [adapter.step for adapter in run.adapters] == [0, 80]
    overview = overview_of(run)
    assert (overview["Objective"], overview["Tokens/s, median"]) == ("log loss", "1,234")
    assert overview["Steps"] == steps
    assert run.is_done == ("of" in steps)
    records.close()
    assert read_runs([tmp_path / "sft"], 1)[0].is_done
    assert settings_of_its_own(run)["data.test_size"] == ("128", "256")  # a key of supervised runs
    assert "Log loss on test examples" in page_of([run])
    sampled(tmp_path / "other", [["a"]])
    for pair in (["sft", "other"], ["other", "sft"]):
        assert "2 runs compared" in page_of(read_runs([tmp_path / name for name in pair], 1))


def _only_config(run: Path) -> None:
    start_run(run)
    (run / METRICS).unlink()
    assert not (run / "rollouts").exists()


def _cut_line(run: Path) -> None:
    sampled(run, [["a"]])
    with (run / METRICS).open("a") as file:
        file.write('{"step": 2, "rew')


def _no_rollouts(run: Path) -> None:
    sampled(run, [["a"]])
    (run / "rollouts" / "step000001.jsonl.gz").unlink()


@pytest.mark.parametrize(("make", "step"), [(_only_config, 0), (_cut_line, 1), (_no_rollouts, 1)])
def test_a_run_may_lack_what_it_has_not_made(make: Callable[[Path], None], step: int, tmp_path: Path) -> None:
    make(tmp_path / "run")
    (run,) = read_runs([tmp_path / "run"], 1)
    assert (run.step, run.steps, run.is_done) == (step, 25, False)
    assert f"<dd>{step} of 25</dd>" in page_of([run])


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(command.app, [str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a run directory" in result.output
    (tmp_path / "config.yaml").write_text("model: {name: m\n")
    assert "config.yaml is damaged: " in CliRunner().invoke(command.app, [str(tmp_path)]).output
    (tmp_path / "config.yaml").write_text("model: {name: m}\n")
    assert "there is no data.source" in CliRunner().invoke(command.app, [str(tmp_path)]).output
    sampled(tmp_path / "run", [["a"]])
    (tmp_path / "run" / "evals").mkdir()
    (tmp_path / "run" / "evals" / "torn.json").write_text("{")
    assert "torn.json is not JSON" in CliRunner().invoke(command.app, [str(tmp_path / "run")]).output
    (tmp_path / "run" / "evals" / "torn.json").unlink()
    (tmp_path / "run" / "adapters" / "v000001").mkdir(parents=True)
    (tmp_path / "run" / "adapters" / "v000001" / "manifest.json").write_text("{}")
    assert "manifest.json is damaged" in CliRunner().invoke(command.app, [str(tmp_path / "run")]).output


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [["a"]])
    (tmp_path / "file").touch()
    result = CliRunner().invoke(command.app, [str(tmp_path / "run"), "--output", str(tmp_path / "file" / "x.html")])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(("option", "needs"), [(("--format", "png"), "--plots DIR"), (("--every", "5"), "--watch")])
def test_an_option_of_another_without_it_is_refused(option: tuple[str, str], needs: str, tmp_path: Path) -> None:
    sampled(tmp_path / "run", [["a"]])
    result = CliRunner().invoke(command.app, [str(tmp_path / "run"), *option])
    assert result.exit_code == 2
    assert result.output == f"error: {' is '.join(option)}, and has no effect: give {needs} too\n"


def test_the_command_writes_page_and_plots(tmp_path: Path) -> None:
    for name in ("one", "two"):
        sampled(tmp_path / name, [["a"], ["b"]])
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    (again := tmp_path / "again").symlink_to("one")
    result = CliRunner().invoke(command.app, [*runs, str(again), "--plots", str(tmp_path / "plots"), "--format", "png"])
    assert result.exit_code == 0, result.output
    assert f"{again} is given twice: it is shown once\n" in result.output
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["throughput.png", "time.png"]
    page = (tmp_path / "one" / "report.html").read_text()
    assert "2 runs compared" in page
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/(2000/svg|1998/Math/MathML)", "", page)
    assert write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "again.html").read_text() == page
    with pytest.raises(IsADirectoryError, match=rf"Is a directory: '{tmp_path / 'two'}'$"):
        write_report([tmp_path / "one"], tmp_path / "two")
    (tmp_path / "link.html").symlink_to("again.html")  # a web server's, for example
    write_report([tmp_path / "one"], tmp_path / "link.html")
    assert (tmp_path / "again.html").read_text() != page
    assert not list(tmp_path.glob(".*.partial"))


def test_plots_draw_per_cent_interval_and_overlay(tmp_path: Path) -> None:
    lines = [{"step": step, "eval/s/avg": step / 10, "eval/s/low": 0.0, "eval/s/high": 0.5} for step in (0, 5)]
    figure, axes = plt.subplots()
    signs = draw_chart(axes, accuracy_chart("s"), {"one": lines, "two": lines[1:]})
    assert [sign.get_label() for sign in signs] == ["one", "two"]
    assert axes.lines[0].get_ydata().tolist() == [0, 50]  # type: ignore[union-attr]
    assert axes.lines[1].get_xdata().tolist() == [5]  # type: ignore[union-attr]
    assert tuple(axes.collections[0].get_paths()[0].get_extents().extents) == (0, 0, 5, 50)
    plt.close(figure)
    figure, axes = plt.subplots()
    seconds = [{"step": step, "time/rollout_s": 1.0, "time/learn_s": 2.0, "time/step_s": 3.5} for step in (1, 2)]
    (chart,) = charts_of(seconds[0])
    assert [sign.get_label() for sign in draw_chart(axes, chart, {"one": seconds})] == ["sample", "learn"]
    assert [part.get_paths()[0].get_extents().y1 for part in axes.collections] == [1, 3]
    plt.close(figure)
    files = plot_charts({"one": lines}, tmp_path, "svg")
    assert [file.name for file in files] == ["accuracy_s.svg"]
    first = files[0].read_bytes()
    plot_charts({"one": lines}, tmp_path, "svg")
    assert files[0].read_bytes() == first


def test_a_chart_of_one_step_shows_what_it_has() -> None:
    """The interval and the parts of a whole, over whole steps: bands and areas have no width there."""
    figure, axes = plt.subplots()
    draw_chart(axes, accuracy_chart("s"), {"one": [{"step": 0, "eval/s/avg": 0.5, "eval/s/low": 0, "eval/s/high": 1}]})
    assert axes.get_xlim() == (-1, 1)
    assert [part.get_paths()[0].get_extents().y1 for part in axes.collections] == [100, 100]
    plt.close(figure)
    figure, axes = plt.subplots()
    (chart,) = charts_of({"time/learn_s"})
    draw_chart(axes, chart, {"one": [{"step": 1, "time/rollout_s": 1.0, "time/learn_s": 2.0, "time/step_s": 3.5}]})
    assert axes.get_xlim() == (0, 2)
    extents = [part.get_paths()[0].get_extents() for part in axes.collections]
    assert [(one.width > 0, one.y1) for one in extents] == [(True, 1), (True, 3)]
    plt.close(figure)


def test_a_value_of_null_is_one_that_was_not_measured(tmp_path: Path) -> None:
    """As pandas writes a table of metrics; an interval may lack an end."""
    run = start_run(tmp_path).run
    lines = [
        {
            "step": 0,
            "reward/mean": None,
            "eval/s/avg": 0.1,
            "eval/s/low": 0.0,
            "eval/s/high": 0.2,
            "eval/s/tokens_mean": 9.0,
        },
        {"step": 1, "reward/mean": 0.5, "eval/s/avg": 0.2, "eval/s/low": None, "eval/s/tokens_mean": 9.0},
        {"step": 2, "reward/mean": 0.5, "eval/s/avg": None, "reward/verdict/error": 0.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = read_run(run, problems=1, budget_bytes=0)
    assert [sorted(line) for line in shown.lines][2] == ["reward/mean", "reward/verdict/error", "step"]
    assert warnings_of(shown) == []
    assert page_of([shown])
    assert plot_run(run).is_file()
    assert len(plot_charts({"run": shown.lines}, tmp_path / "plots", "svg")) == 4


@pytest.mark.parametrize(
    "key", ["time/step_s", "sampler/tokens", "adapter/version", "workers/tail_s", "eval/s/tokens_mean"]
)
def test_an_impossible_value_is_a_gap(key: str, tmp_path: Path) -> None:
    """In a file that was edited or joined from parts. The page used to end in a traceback, or in `cannot convert`."""
    run = start_run(tmp_path).run
    times = {f"time/{phase}_s": 1.0 for phase in ("rollout", "grade", "learn", "sync", "step")}
    whole = {**TIMES, **times, "sampler/kl": 1e-6, "sampler/beyond_frac": 0.0, "workers/busy_frac": 0.5}
    whole |= {"eval/s/avg": 0.5, "eval/s/tokens_mean": 9.0}
    for value in (math.nan, math.inf, 0.0, -1.0, None):
        lines = [{"step": step, **whole, key: value} for step in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (shown,) = read_runs([run], 1)
        assert page_of([shown])
        assert overview_of(shown)["Training time"] == ("0:00:00" if key == "time/step_s" else "0:00:03")


def test_a_full_disk_leaves_the_earlier_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(figure: Figure, file: Path, **options: str) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    start_run(tmp_path)
    before = plot_run(tmp_path).read_bytes()
    monkeypatch.setattr(Figure, "savefig", save)
    with pytest.raises(OSError, match=r"curves\.png"):
        plot_run(tmp_path)
    assert (tmp_path / "curves.png").read_bytes() == before
    assert not [*tmp_path.glob(".curves*")]


def test_every_chart_has_a_file_of_its_own() -> None:
    keys = {"reward/mean", "reward/term/format", "eval/aime2024/avg", "eval/mine/avg", "eval/mine/tokens_mean"}
    charts = charts_of(keys)
    assert [chart.name for chart in charts] == ["accuracy_aime2024", "accuracy_mine", "reward", "eval_length"]
    assert [series.label for series in charts[2].series] == ["reward", "format"]
    assert charts[0].title == "Accuracy on AIME 2024"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "holds a line that is not a step's: '[1]"),
        ('{"loss": 1}', "holds a line that is not a step's"),
        ('{"step": NaN}', "holds a line that is not a step's"),
        ('{"step": Infinity}', "holds a line that is not a step's"),
        ('{"step": 1, "loss": "0.3"}', "holds a line that is not a step's"),
        ("loss", "is not JSON"),
        ('{"step": 1}', ""),
        ('{"step": 1}\n', ""),
    ],
)
def test_a_run_of_few_words_is_shown_and_a_damaged_one_refused(tmp_path: Path, line: str, said: str) -> None:
    """The configuration and metrics of an earlier version lack what is new."""
    (tmp_path / "config.yaml").write_text(
        "{model: {name: m}, data: {source: gsm8k}, optim: {lr: 1.0e-4}, train: {steps: 4, problems_per_step: 2}}\n"
    )
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    (tmp_path / "starts.jsonl").write_text("\n")
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step000001.jsonl.gz").write_text("not packed")
    done = CliRunner().invoke(command.app, [str(tmp_path)])
    assert done.exit_code == (2 if said else 0), done.output
    assert said in done.output
