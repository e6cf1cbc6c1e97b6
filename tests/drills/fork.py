"""The training command in a fork of a process that has its libraries loaded: a run takes seconds, and may be killed.

The fork does what `python -m rl_engine.train` does once it has its arguments. It records which phase it is in, so that
a drill can say where a signal struck, and it can be told to do something at a moment of a phase.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from tests.helpers.forked import fork

MARK = "RL_ENGINE_DRILL"
# Phase → the function that does it: its module, the object that holds it, its name.
PHASES = {
    "loading": ("rl_engine.learner.learner", "Learner", "__init__"),
    "starting vLLM": ("rollout.vllm.engine", "VllmEngine", "__post_init__"),
    "sampling": ("rollout.vllm.engine", "VllmEngine", "generate"),
    "grading": ("rewards", "Grader", "grade"),
    "learning": ("rl_engine.learner.learner", "Learner", "step"),
    "publishing": ("rollout.adapters", "AdapterStore", "publish"),
    "reporting": ("evals.scoring.report", "EvalReport", "write"),
    "rollouts": ("rl_engine.run.records", "Records", "rollouts"),
    "metrics": ("rl_engine.run.records", "Records", "metrics"),
    "checkpointing": ("rl_engine.run.checkpoint", "Checkpoints", "save"),
    "drawing": ("rl_engine.train", "loop", "plot_run"),
    "writing the page": ("rl_engine.train", "one_run", "write_report"),
}
TINY = (
    "data.limit=16",
    "train.steps=3",
    "train.problems_per_step=2",
    "sampling.n=4",
    "sampling.max_tokens=24",
    "eval.every=2",
    "eval.limit=4",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "rollout.kv_cache_gib=0.1",
    "log.tensorboard=false",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The `occurrence`-th time of a phase, counted from 0, and the delay after its beginning. If the phase ends sooner,
    its end is the moment, because the run may end with it."""

    phase: str
    occurrence: int
    after_s: float = 0.0
    do: str = "kill"
    """`kill` or `terminate` the group, or `fill` the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended."""

    code: int
    """Negative if a signal ended it."""
    output: str
    phase: str
    """The phase at the end, or when it was struck."""
    after_signal_s: float
    """Seconds from the moment to the end of the process; 0 without a moment."""
    durations: dict[str, list[float]]
    """The seconds of each occurrence of each phase; empty for a killed run."""


@dataclass
class Journal:
    """Inside the run: the phase it is in, and the moment to act at."""

    place: Path
    moment: Moment | None
    counts: Counter[str] = field(default_factory=Counter)
    durations: dict[str, list[float]] = field(default_factory=dict)
    stack: list[str] = field(default_factory=lambda: ["between"])
    struck: threading.Lock = field(default_factory=threading.Lock)

    def note(self) -> None:
        """Write the phase to the page cache at once: what a killed process has written stays written."""
        descriptor = os.open(self.place / "phase", os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(descriptor, self.stack[-1].ljust(20).encode(), 0)
        os.close(descriptor)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.stack.append(name)
        self.note()
        moment, timer = self.moment, None
        if moment and moment.phase == name and moment.occurrence == self.counts[name]:
            if moment.after_s:
                timer = threading.Timer(moment.after_s, self.strike)
                timer.daemon = True
                timer.start()
            else:
                self.strike()
        self.counts[name] += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.durations.setdefault(name, []).append(time.monotonic() - start)
            if timer is not None and timer.is_alive():
                timer.cancel()
                self.strike()
            self.stack.pop()
            self.note()

    def strike(self) -> None:
        assert self.moment is not None
        if not self.struck.acquire(blocking=False):
            return  # the timer has done it already
        (self.place / "struck").write_text(json.dumps([self.stack[-1], time.time()]))
        if self.moment.do == "fill":
            fill(Path.cwd() / "filler")
        else:
            os.killpg(os.getpid(), {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[self.moment.do])


def fill(path: Path) -> None:
    """Take every byte left on the disk."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def noted(method: Callable[..., Any], journal: Journal, name: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with journal.phase(name):
            return method(*arguments, **named)

    return call


def train_here(
    place: Path, directory: Path, arguments: tuple[str, ...], moment: Moment | None, prepare: Callable[[], None]
) -> None:
    """Become the command. Called in the fork."""
    os.setsid()
    os.chdir(directory)
    os.environ["TMPDIR"] = str(place / "tmp")
    tempfile.tempdir = None
    with (place / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    journal = Journal(place, moment)
    journal.note()
    for name, (module, holder, method) in PHASES.items():
        owner = getattr(importlib.import_module(module), holder, None) or importlib.import_module(f"{module}.{holder}")
        setattr(owner, method, noted(getattr(owner, method), journal, name))
    prepare()
    from rl_engine.train.__main__ import app

    try:
        app(["--config", "quickstart.yaml", *arguments])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (place / "durations.json").write_text(json.dumps(journal.durations))


def as_it_is() -> None: ...


def train(
    place: Path,
    *arguments: str,
    moment: Moment | None = None,
    directory: Path | None = None,
    settings: tuple[str, ...] = TINY,
    prepare: Callable[[], None] = as_it_is,
    timeout_s: float = 1200,
) -> Ended:
    """Run the command below `directory` (or `place`), which is created; notes about it go to `place`.

    `prepare` is called in the fork, before anything else, to change the program under test.
    """
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    for name in ("phase", "struck", "durations.json"):
        (place / name).unlink(missing_ok=True)
    process = fork(train_here, place, directory or place, (*settings, *arguments), moment, prepare)
    process.start()
    try:
        process.join(timeout_s)
        gone = time.time()
        assert process.exitcode is not None, f"the run is still there after {timeout_s:.0f} s"
    finally:
        if process.exitcode is None:
            process.kill()
    struck, at = json.loads((place / "struck").read_text()) if (place / "struck").exists() else (None, gone)
    done = place / "durations.json"
    return Ended(
        code=process.exitcode,
        output=(place / "output.txt").read_text(),
        phase=struck or (place / "phase").read_text().strip(),
        after_signal_s=gone - at,
        durations=json.loads(done.read_text()) if done.exists() else {},
    )
