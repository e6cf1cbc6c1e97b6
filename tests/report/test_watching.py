"""A page that follows its run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl_engine.report import __main__ as command
from rl_engine.run.origin.starts import note_end
from rl_engine.run.records import read_metrics
from tests.helpers.reported import RIGHT, TIMES, embedded_data, sampled
from tests.helpers.run_directories import record_step, start_run


def test_watching_rewrites_the_page_with_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching ends with the run."""
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
    """The run's process recorded its end. Watching continues with a run that is resumed."""
    run, looks = tmp_path / "run", []
    records = start_run(run, "train.steps=9")
    record_step(records, 1, {"a": [RIGHT]}, TIMES)
    note_end(run)
    records.open(1)

    def next_step(seconds: float) -> None:
        looks.append(seconds)
        record_step(records, 2, {"a": [RIGHT]}, TIMES)
        note_end(run)

    monkeypatch.setattr("time.sleep", next_step)
    result = CliRunner().invoke(command.app, [str(run), "--watch"])
    assert result.exit_code == 0, result.output
    assert looks == [10]
    assert f"{run} stopped after step 2 of 9: continue with --resume" in result.output
    assert embedded_data((run / "report.html").read_text())["reload_s"] is None


def test_watching_ends_with_a_page_that_stays_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled(tmp_path, [["a"]])

    def interrupt(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("time.sleep", interrupt)
    result = CliRunner().invoke(command.app, [str(tmp_path), "--watch"])
    assert result.exit_code == 0, result.output
    assert embedded_data((tmp_path / "report.html").read_text())["reload_s"] is None
