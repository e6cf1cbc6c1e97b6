"""Sweeps: what a file means, and what its runs survive. They run a scripted command; no engine is started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from typer.testing import CliRunner

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.reference import rows
from rl_engine.run.records import MARKER, read_metrics
from rl_engine.sweep import __main__ as sweep_command
from rl_engine.sweep import schedule
from rl_engine.sweep.__main__ import app
from rl_engine.sweep.analysis import Analysis, Found, due_cells
from rl_engine.sweep.cells import Cell, arms_of, target_of
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.report import write_report
from rl_engine.sweep.results import Result, Results
from rl_engine.sweep.schedule import run_sweep, targets_of
from rl_engine.sweep.work import processes, runs
from tests.helpers.peft_adapters import write_peft
from tests.helpers.sweep_fake import FAKE, sweep_of

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "configs").glob("sweep_*.yaml"))
SweepMaker = Callable[..., SweepConfig]
# What the recipe of the embedded model begins with is made by another command.
EMBEDDED = {"model.name": "embedded"}


@pytest.fixture
def make_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepMaker:
    """A sweep over the fake command: two arms, three rates a decade apart, the best of which is 1e-3."""
    monkeypatch.setitem(COMMANDS, "fake", FAKE)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "base.yaml").write_text('{"train": {"steps": 4, "problems_per_step": 1}}')
    (tmp_path / "sweep.yaml").write_text(
        f"""
        command: fake
        base: {tmp_path / "base.yaml"}
        grid: {{optim.lr: [1.0e-4, 1.0e-3, 1.0e-2]}}
        arms:
          one: {{}}
          other arm: {{test.shift: 3.0}}
        score: {{metric: score}}
        output_dir: {tmp_path / "out"}
        """
    )

    def make(*overrides: str) -> SweepConfig:
        return read_config(SweepConfig, str(tmp_path / "sweep.yaml"), overrides)

    return make


def run(config: SweepConfig, *, retry_failed: bool = False) -> dict[str, Result]:
    results, stop = run_sweep(config, targets_of(config), retry_failed=retry_failed)
    assert stop.signum is None
    return results.by_cell


def attempts(config: SweepConfig, cell: str) -> list[dict[str, Any]]:
    path = config.output / "cells" / cell / "run" / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# What a file means.


def test_a_plain_grid_has_an_arm_a_combination_of_other_keys() -> None:
    """Other than the axis."""
    config = sweep_of(grid={"lora.rank": [1, 8], "optim.lr": [1e-3, 1e-4], "data.arithmetic.terms": [[3, 4]]})
    arms = arms_of(config)
    assert [arm.name for arm in arms] == ["lora.rank=1", "lora.rank=8"]
    assert [arm.axis_values for arm in arms] == [(1e-4, 1e-3)] * 2
    cells = due_cells(config, {})
    assert [cell.name for cell in cells] == [
        f"lora.rank={rank}_optim.lr={rate}_seed=0" for rank in (1, 8) for rate in (0.0001, 0.001)
    ]
    assert cells[3].overrides == {"lora.rank": 8, "optim.lr": 1e-3, "data.arithmetic.terms": [3, 4], "seed": 0}


def test_an_arm_takes_values_of_its_own_for_a_key_of_the_grid() -> None:
    config = sweep_of(
        set={"train": {"steps": 2}, "lora.alpha": 16},
        grid={"train.problems_per_step": [8, 32], "optim.lr": [1e-3]},
        arms={"rank 1": {"lora": {"rank": 1}, "lora.alpha": 32}, "full": {"method": "full", "optim.lr": [1e-5, 1e-4]}},
    )
    arms = {arm.name: arm for arm in arms_of(config)}
    assert list(arms) == [f"{name}, train.problems_per_step={n}" for name in ("rank 1", "full") for n in (8, 32)]
    first, last = arms["rank 1, train.problems_per_step=8"], arms["full, train.problems_per_step=32"]
    assert first.overrides == {"train.steps": 2, "lora.alpha": 32, "lora.rank": 1}
    assert (first.axis_values, last.axis_values) == ((1e-3,), (1e-5, 1e-4))
    assert (last.family, last.at) == ("full", {"train.problems_per_step": 32})


def test_an_override_replaces_either_notation_of_the_file(make_sweep: SweepMaker) -> None:
    config = make_sweep("grid.optim.lr=[0.5]", "arms.one.test.shift=2")
    assert config.grid == {"optim.lr": (0.5,)}
    assert config.arms["one"] == {"test.shift": 2}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grid": {"lora.rank": [1]}}, ["axis", "optim.lr", "lora.rank"]),
        ({"grid": {"optim.lr": []}}, ["grid.optim.lr"]),
        ({"grid": {"optim.lr": [1e-3, 0]}}, ["optim.lr", "positive", "0"]),
        ({"grid": {"optim.lr": ["auto"]}}, ["optim.lr", "positive", "'auto'"]),
        ({"grid": {"optim.lr": [1e-3, 1e-3]}}, ["twice"]),
        ({"seeds": [0, 1], "confirm_seeds": [1]}, ["seed twice"]),
        ({"reference": "fulll", "arms": {"full": {}}}, ["'fulll'", "full"]),
        ({"set": {"seed": 3}}, ["seed is not for"]),
        ({"command": "eval"}, ["'eval'", "train"]),
        ({"arms": {"a b": {}, "a/b": {}}}, ["share a directory"]),
        (
            {"arms": {"a b": {"optim.lr": [1e-3, 1e-2]}, "c": {}, "a/b": {"optim.lr": [1e-2, 1e-1]}}},
            ["two arms would share a directory: a b, a/b"],
        ),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        arms_of(sweep_of(**{"grid": {"optim.lr": [1e-3]}, **values}))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_wrong_key_of_any_arm_is_found_before_anything_runs() -> None:
    config = sweep_of(grid={"optim.lr": [1e-3]}, arms={"good": {}, "bad": {"lora.rnk": 2}})
    with pytest.raises(ConfigError, match=r"arm bad, optim.lr=0.001[\s\S]*did you mean lora.rank"):
        targets_of(config)


@pytest.mark.parametrize(("given", "read"), [("1.10", "1.1"), ("no", "false")])
def test_a_number_or_a_switch_in_the_place_of_a_text_is_refused(given: str, read: str, make_sweep: SweepMaker) -> None:
    config = make_sweep("command=train", "base=quickstart.yaml", "arms={}", f"set.model.name={given}")
    with pytest.raises(ConfigError, match=rf"model\.name takes text, and YAML reads it as {read}: write it in quotes"):
        targets_of(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_is_valid_in_all_its_cells(name: str) -> None:
    config = read_config(SweepConfig, name)
    assert config.output_dir == f"runs/{Path(name).stem}"
    targets = targets_of(config)
    assert len(targets) >= 3
    # No run is made twice, but for an arm that is another's, judged at a rate that need not be its best.
    chosen = [arm for arm in arms_of(config) if len(arm.axis_values) > 1]
    hashes = [targets[arm.name, value].config_hash for arm in chosen for value in arm.axis_values]
    assert len({*hashes}) == len(hashes)


def test_the_reference_in_the_docs_is_that_of_the_code() -> None:
    written = (ROOT / "docs" / "sweeps.md").read_text()
    assert "\n".join(rows(SweepConfig)) in written


# What its runs survive.


def test_cells_run_two_at_a_time(make_sweep: SweepMaker) -> None:
    """Only the best rate is confirmed with further seeds."""
    config = make_sweep("jobs=2", "confirm_seeds=[5,6]", "keep=metrics", "set.test.company=2")
    results = run(config)
    assert all(result.status == "done" for result in results.values())
    assert len(results) == 2 * (3 + 2)
    for arm in ("one", "other-arm"):
        assert [seed for seed in (5, 6) if f"{arm}_optim.lr=0.001_seed={seed}" in results] == [5, 6]
        assert results[f"{arm}_optim.lr=0.001_seed=5"].score == pytest.approx(0.905)
        assert results[f"{arm}_optim.lr=0.0001_seed=0"].score == pytest.approx(0.81)
    spans = [
        (attempts(config, cell)[0]["at"], float((config.output / "cells" / cell / "run" / "ended").read_text()))
        for cell in results
    ]
    at_work = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_work) == 2
    cores = len(os.sched_getaffinity(0))
    assert {attempts(config, cell)[0]["threads"] for cell in results} == {str(max(1, cores // 2))}
    directory = config.output / "cells" / "one_optim.lr=0.001_seed=0"
    assert sorted(path.name for path in directory.iterdir()) == ["cell.json", "log.txt", "run"]
    assert not (directory / "run" / "adapters").exists()
    assert [line["step"] for line in read_metrics(directory / "run")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("here", "needed", "told", "hands"),
    [
        (("4", "GPU-5", "6"), 1, "", {"4", "GPU-5"}),
        (("0",), 1, "jobs is 2, and there is room on 1 card(s) for 1 at a time", {"0"}),
        (("0", "1", "2"), 2, "jobs is 2, and there is room on 3 card(s) for 1 at a time", {"0,1"}),
        # Such a run says itself what it misses.
        (("0",), 2, "jobs is 2, and there is room on 1 card(s) for 1 at a time", {None}),
        ((), 1, "", {None}),
    ],
)
def test_no_two_processes_have_one_card(
    here: tuple[str, ...],
    needed: int,
    told: str,
    hands: set[str | None],
    make_sweep: SweepMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both would take what was free of it when they began."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep_command, "cards_here", lambda: here)
    monkeypatch.setitem(COMMANDS, "fake", replace(FAKE, cards=lambda config: needed))
    config = make_sweep("set.test.company=2") if len(hands) == 2 else make_sweep()
    asked = ["set.test.company=2"] if len(hands) == 2 else []
    answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml"), "jobs=2", *asked])
    assert answer.exit_code == 0, answer.output
    assert told in answer.output
    assert ("jobs is" in answer.output) == bool(told)
    cells = [attempts(config, cell.name) for cell in due_cells(config, {})]
    assert {one["cards"] for (one,) in cells} == hands


def test_a_run_computes_on_its_learners_card_and_its_samplers() -> None:
    def cards(*settings: str) -> int:
        return COMMANDS["train"].cards(load_config("quickstart.yaml", settings))

    assert cards() == 1
    assert cards("rollout.tensor_parallel_size=2") == 2
    ray = ("rollout.placement=ray", "rollout.workers=3")
    assert cards(*ray) == 4
    assert cards(*ray, "rollout.tensor_parallel_size=2") == 7
    assert cards(*ray, "rollout.address=auto") == 1


def test_waiting_for_runs_reads_no_configuration(make_sweep: SweepMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep looks at its runs ten times a second; what is due changes with a result alone."""
    asked: list[int] = []

    def counted(config: SweepConfig, found: dict[str, Result]) -> list[Cell]:
        asked.append(len(found))
        return due_cells(config, found)

    monkeypatch.setattr(schedule, "due_cells", counted)
    config = make_sweep("jobs=2", "confirm_seeds=[1]", "set.test.step_s=0.1")
    assert len(run(config)) == 2 * (3 + 1)
    assert asked == list(range(9))


def test_failed_and_hanging_cells_are_recorded(
    make_sweep: SweepMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run once more only when that is asked for."""
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    overrides = ("arms.bad.test.kind=broken", "arms.hung.test.kind=deaf", "time_limit_s=1.5", "grid.optim.lr=[1e-3]")
    config = make_sweep(*overrides, "jobs=4")
    results = run(config)
    assert {result.arm: result.status for result in results.values()} == {
        "one": "done",
        "other arm": "done",
        "bad": "failed",
        "hung": "timeout",
    }
    bad, hung = results["bad_optim.lr=0.001_seed=0"], results["hung_optim.lr=0.001_seed=0"]
    assert "exit code 1" in bad.error
    assert bad.error.endswith("RuntimeError: the gap is too large")
    assert "at step -1 of 4" in hung.error
    assert not alive(attempts(config, hung.cell)[0]["pid"])
    assert (bad.score, hung.score) == (None, None)

    (tmp_path / "repaired").touch()
    assert run(config) == results
    again = run(config, retry_failed=True)
    assert again[bad.cell].score == pytest.approx(0.9)
    assert [len(attempts(config, cell)) for cell in again] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"score": {"metric": "eval/gsm8k/avg"}}, "which no run would have: eval.suites has held_out"),
        ({"score": {"metric": "eval/held_out/avg"}, "set": {"eval.suites": []}}, "eval.suites has none"),
        ({"score": {"metric": "test/log_loss"}}, "it is of supervised runs"),
        ({"command": "sft", "base": "embedded.yaml", "set": EMBEDDED}, "supervised runs measure no suites"),
        (
            {
                "command": "sft",
                "base": "embedded.yaml",
                "set": {**EMBEDDED, "data.test_size": 0},
                "score": {"metric": "test/log_loss"},
            },
            "data.test_size is 0",
        ),
    ],
)
def test_a_score_that_no_run_can_have_is_refused_at_once(values: dict[str, Any], told: str) -> None:
    """Not after the hours that the cells take."""
    config = sweep_of(**{"grid": {"optim.lr": [1e-3]}, **values})
    (arm,) = arms_of(config)
    with pytest.raises(ConfigError, match=told):
        target_of(config, arm, 1e-3)


def test_a_score_may_be_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"problem": "1+1=?", "answer": 2}')
    suites, score = {"eval.suites": [str(tmp_path / "mine.jsonl")]}, {"metric": "eval/mine/avg"}
    config = sweep_of(grid={"optim.lr": [1e-3]}, set=suites, score=score)
    assert target_of(config, arms_of(config)[0], 1e-3).steps == 25


def test_a_score_that_is_not_there_fails_the_cell(make_sweep: SweepMaker) -> None:
    """With its name corrected the cell needs no new run."""
    config = make_sweep("grid.optim.lr=[1e-3]")
    scored = run(config)["one_optim.lr=0.001_seed=0"]
    missing = run(make_sweep("grid.optim.lr=[1e-3]", "score.metric=scor"))[scored.cell]
    assert (missing.status, missing.score) == ("failed", None)
    assert "no 'scor'; nearest: score" in missing.error
    run(config, retry_failed=True)
    mean = run(make_sweep("grid.optim.lr=[1e-3]", "score.at=2"))[scored.cell]
    assert mean.score == pytest.approx(0.9 * (3 / 4 + 1) / 2)


def test_a_sweep_is_extended_and_not_mixed_with_other_settings(make_sweep: SweepMaker, tmp_path: Path) -> None:
    run(make_sweep())
    wider = make_sweep("grid.optim.lr=[1e-4,1e-3,1e-2,1e-1]", "seeds=[0,1]")
    assert len(due_cells(wider, Results(wider.output / "results.jsonl").by_cell)) == 2 * (8 - 3)
    (tmp_path / "base.yaml").write_text('{"train": {"steps": 5, "problems_per_step": 1}}')
    with pytest.raises(ConfigError, match=r"6 cells that were run with other settings.*another output_dir"):
        run(wider)


def test_two_sweeps_do_not_share_a_directory(make_sweep: SweepMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_WAIT_S", 0.0)
    config = make_sweep()
    with runs.sole_user(config.output), pytest.raises(ConfigError, match="another sweep"):
        run(config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_stopped_in_the_middle_goes_on_where_it_was(
    number: signal.Signals, make_sweep: SweepMaker, tmp_path: Path
) -> None:
    config = make_sweep("jobs=2")
    (tmp_path / "held").touch()
    command = [sys.executable, "-m", "tests.helpers.sweep_fake", "--config", str(tmp_path / "sweep.yaml"), "jobs=2"]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    # One that has written a step after the line of step 0 has something to go on from.
    while sum(len(read_metrics(each)) > 1 for each in config.output.glob("cells/*/run")) < 3:
        assert time.monotonic() < deadline
        assert sweep.poll() is None
        time.sleep(0.02)
    sweep.send_signal(number)
    output, _ = sweep.communicate(timeout=60)
    finished = Results(config.output / "results.jsonl").by_cell
    assert 1 <= len(finished) < 6
    assert all(result.status == "done" for result in finished.values())
    if number == signal.SIGTERM:
        assert sweep.returncode == 128 + signal.SIGTERM
        assert "run the same command to continue" in output
        assert (config.output / "table.md").is_file()
    with runs.sole_user(config.output):  # free once the last run has gone, however the sweep went
        begun = [path.name for path in (config.output / "cells").iterdir()]
        assert not any(alive(attempt["pid"]) for cell in begun for attempt in attempts(config, cell))

    before = {cell: len(attempts(config, cell)) for cell in begun}
    (tmp_path / "held").unlink()
    results = run(config)
    assert len(results) == 6
    assert {cell: results[cell] for cell in finished} == finished
    for cell in results:
        tries = attempts(config, cell)
        assert len(tries) == before.get(cell, 0) + (cell not in finished)
        assert [line["step"] for line in read_metrics(config.output / "cells" / cell / "run")] == [0, 1, 2, 3, 4]
    # At least one was in its middle, and went on from there.
    assert any(attempts(config, cell)[-1]["from"] > 0 for cell in results)


def test_a_request_that_comes_twice_at_once_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = schedule.Stop()
    with stop.heard():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.signum, stop.at_once) == (signal.SIGINT, False)
        monkeypatch.setattr(schedule, "ECHO_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signum, stop.at_once) == (signal.SIGINT, True)


def test_the_command_says_what_it_would_run_and_what_it_cannot(make_sweep: SweepMaker, tmp_path: Path) -> None:
    make_sweep()
    arguments = ["--config", str(tmp_path / "sweep.yaml"), "--dry-run", "confirm_seeds=[1]"]
    answer = CliRunner().invoke(app, arguments)
    assert (answer.exit_code, "6 cells due, 2 to follow, 0 done" in answer.stdout) == (0, True)
    assert "other-arm_optim.lr=0.01_seed=0" in answer.stdout
    assert not (tmp_path / "out").exists()
    answer = CliRunner().invoke(app, [])
    assert answer.exit_code == 2
    assert "--config NAME_OR_PATH" in answer.stderr


def test_what_cells_begin_with_is_asked_for_until_they_have(tmp_path: Path) -> None:
    """The adapter to start from may be gone once every run has a checkpoint, or a result."""
    start = tmp_path / "start"
    write_peft(start, base_model_name_or_path="embedded")
    (tmp_path / "sweep.yaml").write_text(
        f"""
        base: quickstart.yaml
        set: {{train.steps: 2, lora: {{start_from: {start}, rank: 2, alpha: 2}}}}
        grid: {{optim.lr: [1.0e-4, 1.0e-3]}}
        score: {{metric: eval/held_out/avg}}
        output_dir: {tmp_path / "out"}
        """
    )
    config = read_config(SweepConfig, str(tmp_path / "sweep.yaml"))
    first, second = due_cells(config, {})

    def asked() -> tuple[int, str]:
        answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml"), "--dry-run", "--retry-failed"])
        return answer.exit_code, answer.output

    assert asked()[0] == 0
    shutil.rmtree(start)
    code, output = asked()
    assert (code, output.count("\n")) == (2, 1)
    assert f"arm quickstart, optim.lr=0.0001: lora.start_from: {start} is not an adapter" in output
    (config.output / "cells" / first.name / "run" / "checkpoints" / "step000001").mkdir(parents=True)
    (config.output / MARKER).touch()
    assert "arm quickstart, optim.lr=0.001: lora.start_from" in asked()[1]
    results = Results(config.output / "results.jsonl")
    results.add(result_of_cell(second, status="failed"))
    assert "arm quickstart, optim.lr=0.001: lora.start_from" in asked()[1]
    results.add(result_of_cell(second, status="done"))
    code, output = asked()
    assert (code, "1 cells due, 0 to follow, 1 done" in output) == (0, True), output


def result_of_cell(cell: Cell, status: Literal["done", "failed"]) -> Result:
    return Result(
        cell=cell.name,
        arm=cell.arm,
        axis_value=cell.axis_value,
        seed=cell.seed,
        overrides=cell.overrides,
        config_hash="",
        status=status,
        score=0.5,
        best=0.5,
        curves={},
        seconds=1.0,
        error="",
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--retry-failed", "--dry-run"), "a summary.json holds: leave out --retry-failed, --dry-run"),
        (("jobs=2", "other/summary.json"), "a summary.json holds: leave out jobs=2, other/summary.json"),
        ((), "gone.json is not there, no summary of a sweep"),
    ],
    ids=["options", "settings", "missing"],
)
def test_what_cannot_be_redrawn_is_told_in_a_line(arguments: tuple[str, ...], told: str) -> None:
    answer = CliRunner().invoke(app, ["--redraw", "gone.json", *arguments])
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert told in answer.stderr


def test_a_sweep_s_directory_is_not_its_summary(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["--redraw", str(tmp_path)])
    assert answer.exit_code == 2
    assert f"{tmp_path} is a directory, no summary of a sweep: give {tmp_path}/summary.json" in answer.stderr


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_cell_whose_beginning_cannot_be_read_is_named(content: str, make_sweep: SweepMaker) -> None:
    config = make_sweep()
    cell = due_cells(config, {})[0]
    begun = config.output / "cells" / cell.name / "cell.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(content)
    (config.output / MARKER).touch()
    with pytest.raises(ConfigError, match=rf"cell.json does not say .*: remove {begun.parent}, and the cell begins"):
        run(config)
    assert begun.read_text() == content


def test_a_report_is_written_now_and_then_and_at_the_end(
    make_sweep: SweepMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six cells end within a minute: the first is reported, and all of them once nothing runs."""
    make_sweep()
    reported: list[int] = []

    def write(config: SweepConfig, found: Found) -> Analysis:
        reported.append(len(found))
        return write_report(config, found)

    monkeypatch.setattr(sweep_command, "write_report", write)
    answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml"), "jobs=2"])
    assert answer.exit_code == 0, answer.output
    assert reported == [1, 6]


@pytest.mark.parametrize("begun", [False, True], ids=["never begun", "ended before its time"])
def test_a_sweep_that_nobody_runs_is_not_watched_for_ever(begun: bool, make_sweep: SweepMaker, tmp_path: Path) -> None:
    config = make_sweep()
    if begun:
        results = Results(config.output / "results.jsonl")
        results.add(result_of_cell(due_cells(config, {})[0], status="done"))
        (config.output / ".lock").touch()
    answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml"), "--watch"])
    told = f"error: output_dir: {config.output} has no sweep at work on it here, and {6 - begun} cells are left: the "
    assert (answer.exit_code, answer.stderr) == (2, f"{told}command without --watch runs them\n")
