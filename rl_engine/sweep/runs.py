"""A cell → a process in a directory of its own, watched until it ends; what came of it.

OUTPUT/cells/<cell>/run/      the run's own directory
OUTPUT/cells/<cell>/log.txt   the command and what it printed, of every attempt
OUTPUT/cells/<cell>/cell.json the cell, written before it starts
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rl_engine.config.file import ConfigError
from rl_engine.run.records import read_metrics
from rl_engine.sweep.cells import Cell, Target, arguments_of
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.results import Result, measured
from rollout.files.durable import write_synced

GRACE_S = 120.0
"""A run that was asked to stop saves and leaves, which takes seconds; after so long it is killed."""
LOCK_WAIT_S = 30.0
"""Longest wait for the runs of a sweep that was killed, which are saving what they have."""
TAIL_LINES, TAIL_CHARACTERS = 12, 1500
CELL = "cell.json"
LARGE = ("adapters", "checkpoints", "rollouts")
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def _end_with_the_sweep() -> None:
    """Between fork and exec: have the kernel send SIGTERM when the sweep dies, by whatever cause."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def sole_user(output: Path) -> Iterator[int]:
    """The descriptor of the sweep's lock. Runs inherit it: the lock is free when the last of them has gone, too.

    Raises `ConfigError` when another sweep works in `output`.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise ConfigError(f"output_dir: another sweep, or a run that one left, is at work in {output}")
            time.sleep(0.2)
        yield file.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass
class CellRun:
    """A process at work on a cell."""

    cell: Cell
    target: Target
    directory: Path
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    asked_to_stop: float | None = None
    """When it was asked; monotonic seconds, like `started`."""
    overdue: bool = False

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def step(self) -> int:
        """The last step it has recorded, −1 for none."""
        lines = read_metrics(self.run)
        return int(lines[-1]["step"]) if lines else -1

    def stop(self) -> None:
        """Ask it to save and leave; called again after `GRACE_S`, end it and all it started."""
        now = time.monotonic()
        if self.asked_to_stop is None:
            self.asked_to_stop = now
            self.process.terminate()
        elif now > self.asked_to_stop + GRACE_S:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self, limit_s: float | None) -> bool:
        """Whether it is over; asks it to stop when it is past the limit."""
        if self.process.poll() is not None:
            return True
        self.overdue = self.overdue or (limit_s is not None and self.seconds > limit_s)
        if self.overdue or self.asked_to_stop is not None:
            self.stop()
        return False


def start(config: SweepConfig, cell: Cell, target: Target, lock: int) -> CellRun:
    """Run the cell, from where an earlier attempt left it if its command can."""
    directory = config.output / "cells" / cell.name
    directory.mkdir(parents=True, exist_ok=True)
    record = {**asdict(cell), "config_hash": target.config_hash}
    write_synced(directory / CELL, json.dumps(record, indent=2) + "\n")
    command = COMMANDS[config.command]
    line = [sys.executable, "-m", command.module, "--config", config.base, *arguments_of(cell)]
    line += [f"output_dir={json.dumps(str(directory / 'run'))}", command.restart_option]
    threads = str(max(1, len(os.sched_getaffinity(0)) // config.jobs))
    with (directory / "log.txt").open("ab") as log:
        log.write(f"$ {shlex.join(line)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            line,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal reaches the sweep alone, which asks its runs to stop
            pass_fds=(lock,),
            preexec_fn=_end_with_the_sweep,  # safe: the sweep has no threads
        )
    return CellRun(cell=cell, target=target, directory=directory, process=process)


def result_of(run: CellRun, config: SweepConfig) -> Result:
    """What came of a run that has ended."""
    status: Literal["done", "failed", "timeout"] = "failed"
    reached = f"step {run.step} of {run.target.steps or 'its epochs'}"
    if run.process.returncode == 0 and run.step >= (run.target.steps or 0):
        status, error = "done", ""
    elif run.overdue:
        status, error = "timeout", f"stopped after {run.seconds:.0f} s, at {reached}"
    elif run.process.returncode == 0:
        error = f"it ended well, but at {reached}"
    else:
        error = f"exit code {run.process.returncode}\n{tail(run.directory / 'log.txt')}"
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
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(line.rstrip() for line in lines)[-TAIL_CHARACTERS:]
