"""How a sweep schedules its runs on cards, and survives failures and interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.records import read_metrics
from rl_engine.sweep import __main__ as sweep_command
from rl_engine.sweep import schedule
from rl_engine.sweep.__main__ import app
from rl_engine.sweep.analysis import due_cells
from rl_engine.sweep.cells import Cell, Target
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.report import reason_of
from rl_engine.sweep.results import Result, Results
from rl_engine.sweep.work import runs
from rollout.files.ownership import MARKER
from rollout.stopping import stops_handled
from tests.helpers.sweep_fake import FAKE
from tests.helpers.sweep_runs import ROOT, SweepMaker, alive, attempts, let_time_pass_for_the_hung, run

# Order, cards and failures.


def test_cells_run_two_at_a_time(make_sweep: SweepMaker) -> None:
    """Only the best rate is confirmed with further seeds."""
    config = make_sweep("jobs=2", "confirm_seeds=[5,6]", "keep=metrics", "set.test.concurrent=2")
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
        (("0",), 1, "jobs is 2, but 1 card has room for only 1 at a time", {"0"}),
        (("0", "1", "2"), 2, "jobs is 2, but 3 cards have room for only 1 at a time", {"0,1"}),
        # A run that lacks cards says so itself.
        (("0",), 2, "jobs is 2, but 1 card has room for only 1 at a time", {None}),
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
    """Each of two processes on one card would claim the memory that was free when it began."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep_command, "cards_here", lambda: here)
    monkeypatch.setitem(COMMANDS, "fake", replace(FAKE, cards=lambda config: needed))
    asked = ["grid={optim.lr: [0.001]}", f"set.test.concurrent={len(hands)}"]
    config = make_sweep(*asked)
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
    """The sweep looks at its runs ten times a second, but only a result changes which cells are due."""
    asked: list[int] = []

    def counted(config: SweepConfig, found: dict[str, Result]) -> list[Cell]:
        asked.append(len(found))
        return due_cells(config, found)

    monkeypatch.setattr(schedule, "due_cells", counted)
    config = make_sweep("jobs=2", "confirm_seeds=[1]", "set.test.step_s=0.1")
    assert len(run(config)) == 2 * (3 + 1)
    assert asked == list(range(9))


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (-9, "3/9  0.25\n", "ended by SIGKILL at step -1 of 9, as a system short of memory does: a smaller jobs or"),
        (-15, "3/9  0.25\n", "ended by SIGTERM at step -1 of 9"),
        (1, "error: step 3: out of memory\nWhat was saved before stands: --resume continues it.\n", "step 3: out of"),
        (1, "RuntimeError: the gap is too large\n", "RuntimeError: the gap is too large"),
    ],
    ids=["killed", "stopped", "error", "traceback"],
)
def test_a_failed_cell_says_why(code: int, said: str, told: str, make_sweep: SweepMaker, tmp_path: Path) -> None:
    """And not whatever the run happened to print last."""
    target = Target(config_hash="", steps=9, settings=None)
    cell = runs.CellRun(
        cell=Cell(arm="a", axis_value=1.0, seed=0, overrides={}, name="a"), target=target, directory=tmp_path
    )
    cell.log.write_text(f"$ python -m rl_engine.train\n{said}", encoding="utf-8")
    assert reason_of(runs.result_of(cell, make_sweep(), code).error).startswith(told)


def test_failed_and_hanging_cells_are_recorded(
    make_sweep: SweepMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run again only on request."""
    overrides = ("arms.bad.test.kind=broken", "arms.hung.test.kind=deaf", "time_limit_s=60", "grid.optim.lr=[1e-3]")
    config = make_sweep(*overrides, "jobs=4")
    let_time_pass_for_the_hung(config, "hung_optim.lr=0.001_seed=0", monkeypatch)
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


def test_a_score_that_is_not_there_fails_the_cell(make_sweep: SweepMaker) -> None:
    """Once the metric's name is corrected, the cell needs no new run."""
    config = make_sweep("grid.optim.lr=[1e-3]")
    scored = run(config)["one_optim.lr=0.001_seed=0"]
    missing = run(make_sweep("grid.optim.lr=[1e-3]", "score.metric=scor"))[scored.cell]
    assert (missing.status, missing.score) == ("failed", None)
    assert "no 'scor'; nearest: score" in missing.error
    run(config, retry_failed=True)
    mean = run(make_sweep("grid.optim.lr=[1e-3]", "score.at=2"))[scored.cell]
    assert mean.score == pytest.approx(0.9 * (3 / 4 + 1) / 2)


def test_a_result_is_read_from_metrics_of_the_whole_run_alone(make_sweep: SweepMaker) -> None:
    """Such as those of a cell that somebody trained further by itself, or lost a part of."""
    config = make_sweep("grid.optim.lr=[1e-3]")
    results = run(config)
    path = config.output / "cells" / "one_optim.lr=0.001_seed=0" / "run" / "metrics.jsonl"
    whole = path.read_text()
    for other in (whole + '{"step": 5, "score": 0.1}\n', "".join(whole.splitlines(keepends=True)[:2]), ""):
        path.write_text(other)
        assert run(config) == results
    path.unlink()
    assert run(config) == results


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
    # A run that has written a step after the line of step 0 has something to resume from.
    while sum(len(read_metrics(each)) > 1 for each in config.output.glob("cells/*/run")) < 3:
        assert time.monotonic() < deadline
        assert sweep.poll() is None
        time.sleep(0.02)
    sweep.send_signal(number)
    output, _ = sweep.communicate()
    finished = Results(config.output / "results.jsonl").by_cell
    assert 1 <= len(finished) < 6
    assert all(result.status == "done" for result in finished.values())
    if number == signal.SIGTERM:
        assert sweep.returncode == 128 + signal.SIGTERM
        assert "run the same command to continue" in output
        assert (config.output / "table.md").is_file()
    with runs.sole_user(config.output):  # free once the last run has exited, however the sweep ended
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
    # At least one was stopped midway and resumed from there.
    assert any(attempts(config, cell)[-1]["from"] > 0 for cell in results)


def test_a_request_that_comes_twice_at_once_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = schedule.Stop()
    with stops_handled(stop.note):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.signum, stop.at_once) == (signal.SIGINT, False)
        monkeypatch.setattr(schedule, "ECHO_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signum, stop.at_once) == (signal.SIGINT, True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_cell_whose_beginning_cannot_be_read_is_named(content: str, make_sweep: SweepMaker) -> None:
    config = make_sweep()
    cell = due_cells(config, {})[0]
    begun = config.output / "cells" / cell.name / "cell.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(content)
    (config.output / MARKER).touch()
    with pytest.raises(ConfigError, match=rf"cell.json does not record .*: remove {begun.parent} to run"):
        run(config)
    assert begun.read_text() == content
