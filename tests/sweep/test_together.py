"""Cells of a sweep side by side in one process: which cells share it, and what they survive. The command is scripted,
except in the last test, which trains."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError, read_config
from rl_engine.run.records import read_metrics
from rl_engine.sweep import __main__ as command
from rl_engine.sweep import board, placement
from rl_engine.sweep.analysis import due_cells
from rl_engine.sweep.cells import Cell, arguments_of, arms_of, cell_of
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.report import reason_of
from rl_engine.sweep.results import Result, Results
from rl_engine.sweep.schedule import run_sweep, targets_of
from rl_engine.sweep.sharing import sharing_of
from rl_engine.sweep.work import runs, slots
from rl_engine.sweep.work.concurrent import settings_file
from tests.helpers.sweep_fake import FAKE
from tests.helpers.sweep_runs import ROOT, attempts, let_time_pass_for_the_hung


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over the scripted command, with two arms that can share a process, at three rates."""
    monkeypatch.setitem(COMMANDS, "fake", FAKE)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "base.yaml").write_text("train: {steps: 4, problems_per_step: 1}")
    (tmp_path / "sweep.yaml").write_text(
        f"""
        command: fake
        base: {tmp_path / "base.yaml"}
        grid: {{optim.lr: [1.0e-4, 1.0e-3, 1.0e-2]}}
        arms:
          one: {{}}
          two: {{test.shift: 3.5}}
        score: {{metric: score}}
        together: 2
        output_dir: {tmp_path / "out"}
        """
    )


def sweep(tmp_path: Path, *overrides: str) -> SweepConfig:
    return read_config(SweepConfig, str(tmp_path / "sweep.yaml"), overrides)


def run(config: SweepConfig, *, retry_failed: bool = False) -> dict[str, Result]:
    targets = targets_of(config)
    results, stop = run_sweep(config, targets, retry_failed=retry_failed, sharing=sharing_of(config, targets))
    assert stop.signum is None
    return results.by_cell


def companies(config: SweepConfig, cells: dict[str, Result]) -> list[set[str]]:
    """The cells of each process, in the order in which the processes were started."""
    by_pid: dict[int, set[str]] = {}
    for cell in cells:
        for attempt in attempts(config, cell):
            by_pid.setdefault(attempt["pid"], set()).add(cell)
    return [*by_pid.values()]


def test_cells_that_can_share_are_in_one_process(tmp_path: Path) -> None:
    """Two of these cells are at work at a time."""
    config = sweep(tmp_path, "arms.own.test.base=own", "confirm_seeds=[5]")
    results = run(config)
    assert {result.status for result in results.values()} == {"done"}
    assert len(results) == 9 + 3
    first = {cell for cell in results if "seed=0" in cell and not cell.startswith("own")}
    made = companies(config, results)
    assert first in made
    assert {cell for cell in results if "seed=5" in cell and not cell.startswith("own")} in made
    assert sorted(map(len, made)) == [1] * 4 + [2, 6]
    spans = [
        (attempts(config, cell)[0]["at"], float((config.output / "cells" / cell / "run" / "ended").read_text()))
        for cell in first
    ]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) == 2
    cell = config.output / "cells" / "one_optim.lr=0.001_seed=0"
    assert sorted(path.name for path in cell.iterdir()) == ["cell.json", "config.yaml", "log.txt", "run"]
    assert yaml.safe_load((cell / "config.yaml").read_text())["output_dir"] == str(cell / "run")
    log = (cell / "log.txt").read_text().splitlines()
    assert log[0].startswith("$ ")
    assert "--together 2 --resume" in log[0]
    assert log[1:] == []
    assert results["one_optim.lr=0.001_seed=0"].score == pytest.approx(0.9)


def test_processes_divide_the_cells_among_themselves(tmp_path: Path) -> None:
    config = sweep(tmp_path, "jobs=2")
    results = run(config)
    assert sorted(map(len, companies(config, results))) == [3, 3]
    cores = len(os.sched_getaffinity(0))
    assert {attempts(config, cell)[0]["threads"] for cell in results} == {str(max(1, cores // 2))}


@dataclass
class AtWork:
    """A process that never ends."""

    at_work: list[Cell]


@pytest.mark.parametrize(("at_work", "taken"), [(0, [12, 12]), (1, [13]), (10, [17]), (30, [24])])
def test_a_process_leaves_to_others_what_they_will_be_free_for(
    at_work: int, taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process takes half of the sum of the cells at work and the 24 due cells, from both arms alike."""
    config = sweep(tmp_path, "jobs=2", "seeds=[0, 1, 2, 3]")
    targets = targets_of(config)
    monkeypatch.setattr(slots, "start_together", lambda config, cells, *_: AtWork(cells))
    due = due_cells(config, {})
    begun: Any = [AtWork([due[0]] * at_work)] if at_work else []
    works = slots.WorkSlots(config, targets, sharing_of(config, targets), 0, print)
    works.at_work += begun
    works.fill(due)
    mine = [work.at_work for work in works.at_work[len(begun) :]]
    assert [len(cells) for cells in mine] == taken
    for cells in mine:
        assert abs(sum(cell.arm == "one" for cell in cells) - len(cells) / 2) <= 1


def test_a_cell_that_fails_is_recorded_and_run_again_when_asked(tmp_path: Path) -> None:
    """The other cells go on."""
    config = sweep(tmp_path, "arms.bad.test.kind=broken", "grid.optim.lr=[1e-3]")
    results = run(config)
    bad = results["bad_optim.lr=0.001_seed=0"]
    assert (bad.status, bad.score) == ("failed", None)
    assert reason_of(bad.error) == "RuntimeError: the gap is too large"
    assert {results[f"{arm}_optim.lr=0.001_seed=0"].status for arm in ("one", "two")} == {"done"}
    assert len(companies(config, results)) == 1
    (tmp_path / "repaired").touch()
    assert run(config) == results
    assert run(config, retry_failed=True)[bad.cell].status == "done"


def test_a_cell_that_hangs_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging cell stops the clocks of all cells in its process. Only alone can it be told from those that wait for
    it."""
    config = sweep(tmp_path, "arms.hung.test.kind=deaf", "grid.optim.lr=[1e-3]", "time_limit_s=60", "together=3")
    hung = "hung_optim.lr=0.001_seed=0"
    let_time_pass_for_the_hung(config, hung, monkeypatch)
    results = run(config)
    assert {result.arm: result.status for result in results.values()} == {
        "one": "done",
        "two": "done",
        "hung": "timeout",
    }
    # Once with the others, and once alone; in between with one of them, if that began later by more than a look.
    assert len(attempts(config, hung)) in (2, 3)


def test_a_killed_process_costs_its_cells_nothing(tmp_path: Path) -> None:
    """In the end, a cell that kills its process runs alone."""
    config = sweep(tmp_path, "arms.deadly.test.kind=deadly", "grid.optim.lr=[1e-3]", "together=3")
    results = run(config)
    assert {result.status for result in results.values()} == {"done"}
    deadly = attempts(config, "deadly_optim.lr=0.001_seed=0")
    assert [attempt["from"] for attempt in deadly] == [0, 4, 4]
    for cell in results:
        assert [line["step"] for line in read_metrics(config.output / "cells" / cell / "run")] == [0, 1, 2, 3, 4]


def test_cells_that_cannot_begin_together_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sweep says why."""
    (tmp_path / "refuses").touch()
    config = sweep(tmp_path, "grid.optim.lr=[1e-3]")
    results = run(config)
    assert {result.status for result in results.values()} == {"done"}
    assert len(companies(config, results)) == 2
    assert "there is no room for several" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_where_its_cells_were(number: signal.Signals, tmp_path: Path) -> None:
    config = sweep(tmp_path)
    (tmp_path / "held").touch()
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.sweep_fake", "--config", str(tmp_path / "sweep.yaml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(config.output.glob("cells/*/run/metrics.jsonl"))) < 3 and time.monotonic() < deadline:
        assert started.poll() is None
        time.sleep(0.02)
    started.send_signal(number)
    output, _ = started.communicate()
    if number == signal.SIGTERM:
        assert started.returncode == 128 + signal.SIGTERM
        assert "run the same command to continue" in output
    with runs.sole_user(config.output):
        finished = Results(config.output / "results.jsonl").by_cell
    assert len(finished) < 6
    assert all(result.status == "done" for result in finished.values())
    (tmp_path / "held").unlink()
    results = run(config)
    assert len(results) == 6
    assert {cell: results[cell] for cell in finished} == finished
    for cell in results:
        assert [line["step"] for line in read_metrics(config.output / "cells" / cell / "run")] == [0, 1, 2, 3, 4]
    assert any(attempts(config, cell)[-1]["from"] > 0 for cell in results)


def test_a_supervised_sweep_reports_that_its_cells_run_alone() -> None:
    with pytest.raises(ConfigError, match="together is 4, and has no effect: each cell of command sft runs alone"):
        read_config(SweepConfig, "sweep_capacity.yaml", ["together=4"])


def test_full_fine_tuning_is_left_out_and_the_arm_is_named_once() -> None:
    config = read_config(SweepConfig, "sweep_rates.yaml", ["together=4"])
    sharing = sharing_of(config, targets_of(config))
    assert [len(group) for group in sharing.groups] == [21]
    assert len(sharing.why_apart) == 1
    assert sharing.why_apart[0].startswith("full: each cell runs alone: method is full")


@pytest.mark.parametrize("name", ["sweep_rates.yaml", "sweep_layers.yaml", "sweep_starts.yaml"])
def test_the_settings_file_of_a_cell_says_what_its_command_says(name: str, tmp_path: Path) -> None:
    config = read_config(SweepConfig, name)
    for arm in arms_of(config):
        cell = cell_of(config, arm, arm.axis_values[0], 3)
        told = read_config(Config, config.base, [*arguments_of(cell.overrides), f"output_dir={tmp_path}/run"])
        (tmp_path / "config.yaml").write_text(settings_file(told))
        assert read_config(Config, str(tmp_path / "config.yaml")) == told


def test_the_table_has_a_row_a_cell_and_is_read_elsewhere(tmp_path: Path) -> None:
    config = sweep(tmp_path)
    targets = targets_of(config)
    names = [row.cell.name for row in board.rows_of(config, targets, {})]
    assert len(names) == 6
    run(config)
    console = Console(width=200, file=io.StringIO(), record=True)
    assert command.code_of(board.watch(config, targets, console)) == 0
    shown = console.export_text()
    assert all(f"{name}  " in shown for name in names)
    assert shown.count("4/4") == shown.count("done") == 6


def test_cells_that_do_not_fit_together_are_refused_first() -> None:
    """Each of a thousand processes gets a thousandth of the machine."""
    cells = [load_config("quickstart.yaml", [f"lora.rank={rank}"]) for rank in (1, 8)]
    with pytest.raises(ConfigError, match=r"^together=2: 2 runs together: .* GiB .*give a smaller together.*jobs"):
        placement.estimate_together(cells, 2, 1000)


@pytest.mark.engine
def test_two_cells_train_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch is loaded here already and nothing forks, so memory can be estimated without a separate process.
    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], room=placement.estimate_together))
    (tmp_path / "real.yaml").write_text(
        f"""
        base: quickstart.yaml
        set:
          model.dtype: float32
          train: {{steps: 2, problems_per_step: 2}}
          sampling.n: 2
          eval: {{every: 0, suites: []}}
          data.limit: 8
          log.tensorboard: false
          rewards.workers: 1
          rollout.kv_cache_gib: 0.25
          checkpoint.every: 100
        grid: {{optim.lr: [1.0e-3]}}
        arms: {{rank 1: {{}}, rank 4: {{lora.rank: 4, loss.name: cispo}}}}
        score: {{metric: reward/mean}}
        together: 2
        output_dir: {tmp_path / "out"}
        """
    )
    answer = CliRunner().invoke(command.app, ["--config", str(tmp_path / "real.yaml")])
    assert answer.exit_code == 0, answer.output
    assert "2 of 2 runs at a time" in answer.stdout
    config = read_config(SweepConfig, str(tmp_path / "real.yaml"))
    results = Results(config.output / "results.jsonl").by_cell
    assert [result.status for result in results.values()] == ["done", "done"]
    assert len(list((config.output / "together").iterdir())) == 1
    for arm in arms_of(config):
        cell = cell_of(config, arm, 1e-3, 0)
        root = config.output / "cells" / cell.name / "run"
        alone = read_config(Config, config.base, [*arguments_of(cell.overrides), f"output_dir={root}"])
        assert read_config(Config, str(root / "config.yaml")).model_dump() == alone.model_dump()
        assert (root / "report.html").is_file()
        assert [line["step"] for line in read_metrics(root)] == [0, 1, 2]
