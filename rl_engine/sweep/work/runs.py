"""A cell → a run in its own directory, watched until it ends, and its result.

OUTPUT/cells/<cell>/run/      the run's own directory
OUTPUT/cells/<cell>/log.txt   the command and what it printed, for every attempt
OUTPUT/cells/<cell>/cell.json the cell, written before it starts
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rl_engine.config.file import ConfigError
from rl_engine.run.locks import LOCK, takes_lock
from rl_engine.run.records import read_metrics
from rl_engine.sweep.cells import Cell, Target, arguments_of
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.results import Result, measured
from rl_engine.sweep.work.processes import Process, start_process
from rollout.files.durable import write_synced

LOCK_WAIT_S = 30.0
"""Longest wait for runs of a killed sweep that are still saving their state."""
TAIL_LINES, TAIL_CHARACTERS = 12, 1500
CELL = "cell.json"
LARGE = ("adapters", "checkpoints", "rollouts")


@contextlib.contextmanager
def sole_user(output: Path) -> Iterator[int]:
    """Hold the sweep's lock inside the block, and yield its descriptor. Runs inherit the descriptor, so the lock is
    free only when the last of them has exited, too.

    Raises `ConfigError` when another sweep is running in `output`.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a", encoding="utf-8") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not takes_lock(file):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"output_dir: another sweep, or a run left over from one, is still running in {output}: wait for "
                    "it or stop it"
                )
            time.sleep(0.2)
        yield file.fileno()


@dataclass(kw_only=True)
class CellRun:
    """A running cell."""

    cell: Cell
    target: Target
    directory: Path
    started: float = field(default_factory=time.monotonic)
    overdue: bool = False

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def step(self) -> int:
        """The last step it has recorded; −1 if none."""
        lines = read_metrics(self.run)
        return int(lines[-1]["step"]) if lines else -1


@dataclass(kw_only=True)
class Alone:
    """A process that runs one cell."""

    of_cell: CellRun
    process: Process
    over: bool = False

    @property
    def at_work(self) -> list[Cell]:
        return [] if self.over else [self.of_cell.cell]

    def news(self, config: SweepConfig) -> list[Result]:
        """The cell's result once it has ended. Asks the process to stop when it is past the time limit."""
        run, limit_s = self.of_cell, config.time_limit_s
        if self.process.returncode is None:
            run.overdue = run.overdue or (limit_s is not None and run.seconds > limit_s)
            if run.overdue:
                self.process.stop()
            return []
        self.over = True
        return [result_of(run, config, self.process.returncode)]


def begin(config: SweepConfig, cell: Cell, target: Target) -> CellRun:
    """Create the cell's directory, with a record of the cell."""
    directory = config.output / "cells" / cell.name
    directory.mkdir(parents=True, exist_ok=True)
    record = {**asdict(cell), "config_hash": target.config_hash}
    write_synced(directory / CELL, json.dumps(record, indent=2) + "\n")
    return CellRun(cell=cell, target=target, directory=directory)


def start_alone(config: SweepConfig, cell: Cell, target: Target, lock: int, cards: str | None) -> Alone:
    """Run the cell, resuming from where an earlier attempt left it if its command can."""
    run = begin(config, cell, target)
    command = COMMANDS[config.command]
    line = [sys.executable, "-m", command.module, "--config", config.base, *arguments_of(cell.overrides)]
    line += [f"output_dir={json.dumps(str(run.run))}", "--resume"]
    note_command(run.log, line)
    return Alone(of_cell=run, process=start_process(line, run.log, config.jobs, lock, cards))


def note_command(log: Path, line: Sequence[str]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(line)}\n")


def result_of(run: CellRun, config: SweepConfig, code: int) -> Result:
    """The result of a run that has ended with this exit code."""
    status: Literal["done", "failed", "timeout"] = "failed"
    reached = f"step {run.step} of {run.target.steps or 'its epochs'}"
    if code == 0 and run.step >= (run.target.steps or 0):
        status, error = "done", ""
    elif run.overdue:
        status, error = "timeout", f"stopped after {run.seconds:.0f} s, at {reached}"
    elif code == 0:
        error = f"exit code 0, but it ended at {reached}"
    else:
        error = f"exit code {code}\n{tail(run.log)}"
        if code < 0:
            error += f"\nerror: ended by {signal.Signals(-code).name} at {reached}"
        if code == -signal.SIGKILL:
            error += ", as a system short of memory does: a smaller jobs or together needs less"
    cell = run.cell
    plain = Result(
        cell=cell.name,
        arm=cell.arm,
        axis_value=cell.axis_value,
        seed=cell.seed,
        overrides=cell.overrides,
        config_hash=run.target.config_hash,
        status=status,
        score=None,
        best=None,
        curves={},
        seconds=round(run.seconds, 1),
        error=error,
    )
    result = measured(plain, run.run, config.score, config.metrics)
    if result.status == "done" and config.keep == "metrics":
        for name in LARGE:
            shutil.rmtree(run.run / name, ignore_errors=True)
    return result


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines()[-TAIL_LINES:]
    return "\n".join(line.rstrip() for line in lines)[-TAIL_CHARACTERS:]
