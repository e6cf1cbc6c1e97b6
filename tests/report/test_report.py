"""Run directories → records, page and plots: what is chosen, what is escaped, and what may be missing."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from typer.testing import CliRunner

import rl_engine
from rewards import Verdict
from rl_engine.config.file import read_config
from rl_engine.config.sft import SftConfig
from rl_engine.report import __main__ as command
from rl_engine.report.charts import accuracy_chart, charts_of
from rl_engine.report.completions import (
    CHARACTERS,
    SAMPLES,
    ShownCompletions,
    bytes_in_page,
    shortened,
    shown_completions,
)
from rl_engine.report.origins import settings_of_its_own
from rl_engine.report.page import names_of, page_of, read_runs, write_report
from rl_engine.report.plot import draw_chart, plot_charts
from rl_engine.report.shown_run import read_run
from rl_engine.report.tables import changes_of, conditions_of, differences_of, overview_of
from rl_engine.run.origin.starts import note_end, note_start
from rl_engine.run.records import METRICS, Records, read_metrics
from tests.helpers.run_directories import evaluated, publish, record_step, start_run

RIGHT, WRONG = ("4", Verdict.CORRECT), ("5", Verdict.INCORRECT)
TIMES = {"time/step_s": 2.0, "time/learn_s": 1.5, "throughput/tokens_per_s": 50.0}


def sampled(run: Path, steps: list[list[str]], text: str = "4") -> None:
    """A run whose steps sampled these problems, two completions each."""
    records = start_run(run)
    for step, problems in enumerate(steps, start=1):
        record_step(records, step, {key: [(text, Verdict.CORRECT), WRONG] for key in problems}, TIMES)


def chosen(shown: ShownCompletions) -> list[tuple[int, str]]:
    return [(group.step, group.problem_id) for group in shown.groups]


def embedded_data(page: str) -> Any:
    """What the page's scripts parse."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_problems_that_come_back_are_shown_at_every_such_step(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [["a", "again", "b"], ["c", "d"], ["again", "e"]])
    shown = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    found = chosen(shown)
    assert (found[0], found[2]) == ((1, "again"), (3, "again"))
    assert found[1] in [(2, "c"), (2, "d")]
    assert (shown.steps_read, shown.groups_total, shown.is_full) == (3, 7, False)
    assert shown == shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    (first, *_) = shown.groups
    assert (first.samples, first.accuracy, first.completions[1].verdict) == (2, 0.5, "incorrect")


def test_a_small_budget_is_spread_over_the_run(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [[f"{step}-{place}" for place in range(2)] for step in range(8)])
    whole = shown_completions(tmp_path / "run", problems=2, budget_bytes=10**6)
    assert len(whole.groups) == 16
    room_for_four = 4 * bytes_in_page(whole.groups[0])
    some = shown_completions(tmp_path / "run", problems=2, budget_bytes=room_for_four)
    assert [group.step for group in some.groups] == [1, 3, 5, 7]
    assert some.is_full
    assert shown_completions(tmp_path / "run", problems=2, budget_bytes=0).groups == ()


def test_a_long_run_is_read_at_even_steps_and_at_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_engine.report.completions.STEPS", 4)
    sampled(tmp_path / "run", [["a"] for _ in range(10)])
    shown = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    assert [group.step for group in shown.groups] == [1, 5, 9, 10]
    assert (shown.steps_read, shown.steps_total) == (4, 10)


def test_large_groups_and_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    records = start_run(tmp_path / "run")
    record_step(records, 1, {"a": [RIGHT] * (SAMPLES + 8) + [WRONG] * 16}, TIMES)
    (group,) = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6).groups
    assert len(group.completions) == SAMPLES
    assert (group.samples, group.accuracy) == (32, 0.5)
    cut = shortened("a" * CHARACTERS + "b" * 1234)
    assert cut.startswith("a" * (CHARACTERS // 2))
    assert cut.endswith("a" + "b" * 1234)
    assert "1,234 characters left out" in cut
    assert shortened("a" * CHARACTERS) == "a" * CHARACTERS


def test_a_step_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    sampled(tmp_path, [["a"], ["a"]])
    path = tmp_path / "rollouts" / "step000002.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert chosen(shown_completions(tmp_path, problems=1, budget_bytes=10**6)) == [(1, "a")]
    plain = gzip.decompress((tmp_path / "rollouts" / "step000001.jsonl.gz").read_bytes())
    path.unlink()
    path.with_suffix("").write_bytes(plain.replace(b'"step": 1', b'"step": 2'))
    assert chosen(shown_completions(tmp_path, problems=1, budget_bytes=10**6)) == [(1, "a"), (2, "a")]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _other_rows(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"step": 2}\n'))


def _other_values(path: Path) -> None:
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress(json.dumps({**rows[0], "prompt": None}).encode() + b"\n"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "step000002.jsonl.gz cannot be read ("),
        (lambda path: path.write_bytes(b"no gzip"), "step000002.jsonl.gz cannot be read ("),
        (lambda path: path.write_bytes(gzip.compress(b"no JSON\n")), "step000002.jsonl.gz cannot be read ("),
        (_other_rows, "step000002.jsonl.gz cannot be read (line 1 is no completion)"),
        (_other_values, "step000002.jsonl.gz cannot be read (line 1 is no completion)"),
    ],
)
def test_a_step_of_damaged_completions_is_named_the_rest_shown(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    records = start_run(run)
    for step in (1, 2, 3):
        record_step(records, step, {"a": [RIGHT, WRONG]}, TIMES)
    damage(run / "rollouts" / "step000002.jsonl.gz")
    result = CliRunner().invoke(command.app, [str(run)])
    assert result.exit_code == 0
    (line,) = [line for line in result.output.splitlines() if said in line]
    assert line.endswith(": its completions are left out")
    assert said in (run / "report.html").read_text()
    (shown,) = read_runs([run], 1)
    assert chosen(shown.completions) == [(1, "a"), (3, "a")]
    if damage not in (_other_rows, _other_values):
        with pytest.raises(ValueError, match=r"step000002.jsonl.gz cannot be read"):
            list(rl_engine.read_run(run).completions())


def test_the_directory_of_a_sweep_is_told_from_a_run_s(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    said = CliRunner().invoke(command.app, [str(tmp_path)]).output
    assert said.endswith(f"there is no {tmp_path}/config.yaml; its cells' runs are {tmp_path}/cells/*/run\n")


def test_completions_that_were_deleted_are_counted_not_warned_of(tmp_path: Path) -> None:
    """They take room, and are nobody's loss: where completions are shown it says of how many steps, and a step that is
    asked for is said to have none."""
    run = tmp_path / "run"
    records = start_run(run)
    for step in (1, 2, 3):
        record_step(records, step, {"a": [RIGHT, WRONG]}, TIMES)
    (run / "rollouts" / "step000002.jsonl.gz").unlink()
    result = CliRunner().invoke(command.app, [str(run)])
    (line,) = result.output.splitlines()
    assert line.startswith("report ")
    (shown,) = read_runs([run], 1)
    assert (shown.completions.steps_read, shown.completions.steps_total) == (2, 3)
    with pytest.raises(ValueError, match="step 2"):
        list(rl_engine.read_run(run).completions(2))


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
    # An earlier version knew no such keys: what is at its default now is no difference, what is not is one.
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
    """It has no version in its metrics, no sampling and no objective by name, and may count epochs."""
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


def test_a_page_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [["a"]])
    (tmp_path / "file").touch()
    result = CliRunner().invoke(command.app, [str(tmp_path / "run"), "--output", str(tmp_path / "file" / "x.html")])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


def test_the_command_writes_page_and_plots(tmp_path: Path) -> None:
    for name in ("one", "two"):
        sampled(tmp_path / name, [["a"], ["b"]])
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    result = CliRunner().invoke(command.app, [*runs, "--plots", str(tmp_path / "plots"), "--format", "png"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["throughput.png", "time.png"]
    page = (tmp_path / "one" / "report.html").read_text()
    assert "2 runs compared" in page
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/(2000/svg|1998/Math/MathML)", "", page)
    assert write_report([tmp_path / "one", tmp_path / "two"], tmp_path / "again.html").read_text() == page


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


def test_every_chart_has_a_file_of_its_own() -> None:
    keys = {"reward/mean", "reward/term/format", "eval/aime2024/avg", "eval/mine/avg", "eval/mine/tokens_mean"}
    charts = charts_of(keys)
    assert [chart.name for chart in charts] == ["accuracy_aime2024", "accuracy_mine", "reward", "eval_length"]
    assert [series.label for series in charts[2].series] == ["reward", "format"]
    assert charts[0].title == "Accuracy on AIME 2024"


def test_watching_rewrites_the_page_with_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the run."""
    run, output = tmp_path / "run", tmp_path / "page.html"
    records = start_run(run, "train.steps=2")
    seen: list[tuple[int, float | None]] = []

    def next_step(seconds: float) -> None:
        data = embedded_data(output.read_text())
        seen.append((len(data["runs"][0]["metrics"].get("step", [])), data["reload_s"]))
        record_step(records, len(read_metrics(run)) + 1, {"a": [RIGHT]}, TIMES)

    monkeypatch.setattr("time.sleep", next_step)
    result = CliRunner().invoke(command.app, [str(run), "--watch", "--every", "7", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert seen == [(0, 7.0), (1, 7.0)]
    last = embedded_data(output.read_text())
    assert (last["runs"][0]["metrics"]["step"], last["reload_s"]) == ([1, 2], None)


def test_watching_ends_with_a_run_that_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process noted that it left; one that is taken up again is watched on."""
    run, looks = tmp_path / "run", []
    records = start_run(run, "train.steps=9")
    note_start(run, -1)
    record_step(records, 1, {"a": [RIGHT]}, TIMES)
    note_end(run)
    note_start(run, 1)

    def next_step(seconds: float) -> None:
        looks.append(seconds)
        record_step(records, 2, {"a": [RIGHT]}, TIMES)
        note_end(run)

    monkeypatch.setattr("time.sleep", next_step)
    result = CliRunner().invoke(command.app, [str(run), "--watch"])
    assert result.exit_code == 0, result.output
    assert looks == [10]
    assert f"{run} stopped after step 2 of 9: --resume of its command goes on" in result.output
    assert embedded_data((run / "report.html").read_text())["reload_s"] is None


def test_watching_ends_with_a_page_that_stays_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled(tmp_path, [["a"]])

    def interrupt(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("time.sleep", interrupt)
    result = CliRunner().invoke(command.app, [str(tmp_path), "--watch"])
    assert result.exit_code == 0, result.output
    assert embedded_data((tmp_path / "report.html").read_text())["reload_s"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "holds a line that is not a step's: '[1]"),
        ('{"loss": 1}', "holds a line that is not a step's"),
        ('{"step": 1, "loss": "0.3"}', "holds a line that is not a step's"),
        ("loss", "is not JSON"),
        ('{"step": 1}', ""),
    ],
)
def test_a_run_of_few_words_is_shown_and_a_damaged_one_refused(tmp_path: Path, line: str, said: str) -> None:
    """An earlier version's configuration and metrics lack what is new."""
    (tmp_path / "config.yaml").write_text(
        "{model: {name: m}, data: {source: gsm8k}, optim: {lr: 1.0e-4}, train: {steps: 4, problems_per_step: 2}}\n"
    )
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step000001.jsonl.gz").write_text("not packed")
    done = CliRunner().invoke(command.app, [str(tmp_path)])
    assert done.exit_code == (2 if said else 0), done.output
    assert said in done.output
