"""What the sweep command says before it runs, while the sweep runs elsewhere, and when its report is redrawn."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.config.file import read_config
from rl_engine.sweep import __main__ as sweep_command
from rl_engine.sweep.__main__ import app
from rl_engine.sweep.analysis import Analysis, Found, due_cells
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import write_report
from rl_engine.sweep.results import Results
from rl_engine.sweep.schedule import targets_of
from rollout.files.ownership import MARKER
from tests.helpers.peft_adapters import write_peft
from tests.helpers.sweep_runs import SweepMaker, result_of_cell


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


def test_a_full_disk_ends_a_sweep_with_a_way_on(
    make_sweep: SweepMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells may have met the full disk before it did: those count as failed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "results.jsonl")

    monkeypatch.setattr(sweep_command, "run_sweep", full)
    make_sweep()
    answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml")])
    assert answer.exit_code == 1
    assert "'results.jsonl'\nMake space. The same command with --retry-failed continues.\n" in answer.output


def test_what_cells_begin_with_is_asked_for_until_they_have(tmp_path: Path) -> None:
    """Once every run has a checkpoint or a result, the adapter to start from may be gone."""
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

    def asked(*options: str) -> tuple[int, str]:
        options = options or ("--dry-run", "--retry-failed")
        answer = CliRunner().invoke(app, ["--config", str(tmp_path / "sweep.yaml"), *options])
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
    made_with = targets_of(config)[second.arm, second.axis_value].config_hash
    results.add(replace(result_of_cell(second, status="failed"), config_hash=made_with))
    assert "arm quickstart, optim.lr=0.001: lora.start_from" in asked()[1]
    assert "1 cells due, 0 to follow, 0 done, 1 failed: --retry-failed runs them again" in asked("--dry-run")[1]
    results.add(replace(result_of_cell(second, status="done"), config_hash=made_with))
    code, output = asked()
    assert (code, "1 cells due, 0 to follow, 1 done" in output) == (0, True), output
    results.add(replace(result_of_cell(second, status="done"), config_hash="that of other settings"))
    code, output = asked()
    assert (code, "holds 1 cells that were run with other settings" in output) == (2, True), output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--retry-failed", "--dry-run"), "a summary.json holds: leave out --retry-failed, --dry-run"),
        (("jobs=2", "other/summary.json"), "a summary.json holds: leave out jobs=2, other/summary.json"),
        ((), "--redraw: gone.json does not exist"),
    ],
    ids=["options", "settings", "missing"],
)
def test_what_cannot_be_redrawn_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    answer = CliRunner().invoke(app, ["--redraw", "gone.json", *arguments])
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert told in answer.stderr


def test_a_sweep_s_directory_is_not_its_summary(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["--redraw", str(tmp_path)])
    assert answer.exit_code == 2
    assert f"--redraw: {tmp_path} is a directory: give {tmp_path}/summary.json" in answer.stderr


def test_a_report_is_written_now_and_then_and_at_the_end(
    make_sweep: SweepMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six cells end within a minute: a report is written after the first, and another when nothing runs any more."""
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
    told = f"error: output_dir: no sweep is running in {config.output} on this machine, and {6 - begun} cells are left"
    assert (answer.exit_code, answer.stderr) == (2, f"{told}: run the command without --watch\n")
