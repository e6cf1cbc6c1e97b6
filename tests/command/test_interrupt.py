"""Ctrl-C in a command, from its first line on: one line and exit code 130; SIGTERM if there is something to clean
up."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from datafiles.leaving import leave_tidily, leave_while_loading
from rl_engine.__main__ import COMMANDS
from tests.helpers.run_directories import trained_run

ROOT = Path(__file__).parents[2]
MODULES = sorted({module for module, _ in COMMANDS.values()})
# Stands in for a library that every command loads first.
TYPER = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"


@pytest.mark.parametrize("arguments", [*((module,) for module in MODULES), ("rl_engine", "check")], ids=" ".join)
def test_ctrl_c_while_a_command_loads_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(TYPER)
    (tmp_path / "here").mkdir()  # a typer.py in the current directory would be refused by its name
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", *arguments]
    ended = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: stopped\n")


def ask(number: int) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    return act


# A command, and the function it is in when it is asked to stop.
AT_WORK = [
    (("rl_engine.report", "run", "--output", "page.html"), "write_page"),
    (("rl_engine.inspect", "run"), "inspect"),
    (("rl_engine.push", "--adapter", "run/adapters/latest", "--repo", "a/b", "--dry-run"), "make_release"),
    (("rl_engine.doctor",), "examine"),
    (("rl_engine.sweep", "--config", "sweep_rates.yaml", "--dry-run", "output_dir=sweep"), "due_cells"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(("command", "at"), AT_WORK, ids=lambda each: each if isinstance(each, str) else each[0])
def test_a_command_that_is_asked_to_stop_says_so_in_one_line(
    command: tuple[str, ...], at: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_run(Path("run"), "lora.rank=2")
    main = importlib.import_module(f"{command[0]}.__main__")
    monkeypatch.setattr(main, at, ask(number))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    result = CliRunner().invoke(main.app, command[1:])
    assert result.exit_code == 128 + number, result.output
    assert result.stderr.splitlines()[-1] == "error: stopped"
    assert "Traceback" not in result.output
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_in_a_command_without_anything_to_tidy_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hides the cursor while it grades, so from then on Ctrl-C must not end it at once."""
    from rewards import check

    monkeypatch.setattr(check, "load", ask(signal.SIGINT))
    leave_while_loading()
    try:
        result = CliRunner().invoke(check.app, [__file__])
    finally:
        leave_tidily()
    assert (result.exit_code, result.output) == (130, "error: stopped\n")
