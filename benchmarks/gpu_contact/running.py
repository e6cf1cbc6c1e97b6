"""Stages → their outcomes: processes one after the other, each within its limit and all within the deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu_contact.figures import FILE, noted
from benchmarks.gpu_contact.stages import Stage

ROOT = Path(__file__).parents[2]
PASSED, FAILED, OVERLONG, CUT, SKIPPED = "passed", "failed", "over its limit", "cut by the deadline", "skipped"
LEAST_S = 10.0
"""With less time left no stage is started, because it would achieve nothing."""
GRACE_S = 5.0
"""Time that a process has to exit after SIGTERM."""
LAST_LINES = 25
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "160",
    # Empty means unset. If it were set, every stage would recompile the libraries' Python code.
    "PYTHONDONTWRITEBYTECODE": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a stage."""

    name: str
    asks: str
    outcome: str
    """PASSED, FAILED, OVERLONG, CUT or SKIPPED."""
    seconds: float = 0.0
    expected_s: float = 0.0
    """Seconds that it takes on a card like an H100."""
    exit: int | None = None
    reason: str = ""
    figures: tuple[dict[str, Any], ...] = ()
    """What it measured until it ended."""
    last_lines: tuple[str, ...] = ()
    """The last lines of its log."""

    @property
    def passed(self) -> bool:
        return self.outcome == PASSED


def run_all(stages: Sequence[Stage], deadline: float, out: Path) -> Iterator[Outcome]:
    """Run each stage, whatever the outcome of those before it, and yield its outcome when it has ended.

    `deadline` is on the monotonic clock; logs go to `<stage>.log` in `out`.
    """
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        left = deadline - time.monotonic()
        before = outcomes.get(stage.after or "")
        if stage.after and (before is None or not before.passed):
            came = before.outcome if before else "not there"
            outcome = _outcome(stage, SKIPPED, f"it needs {stage.after}, which was {came}")
        elif left < LEAST_S:
            outcome = _outcome(stage, CUT, f"{max(left, 0):.0f} s were left, and it was not begun")
        else:
            outcome = run_stage(stage, min(stage.limit_s, left), out / f"{stage.name}.log")
        outcomes[stage.name] = outcome
        yield outcome


def run_stage(stage: Stage, limit_s: float, log: Path) -> Outcome:
    """Run one stage for at most `limit_s` seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_contact-") as place:
        figures = Path(place) / "figures.jsonl"
        with log.open("w") as file:
            code = _exit_code(stage.command, limit_s, file, {FILE: str(figures)})
        found = (*noted(figures), *stage.read())
    if code is None:
        # If the deadline shortened the limit, the stage was cut by the deadline.
        outcome = OVERLONG if limit_s >= stage.limit_s else CUT
        reason = f"ended after {limit_s:.0f} s"
    else:
        outcome, reason = (FAILED, f"exit code {code}") if code else (PASSED, "")
    lines = log.read_text(errors="replace").splitlines()
    return replace(
        _outcome(stage, outcome, reason),
        seconds=round(time.monotonic() - start, 1),
        exit=code,
        figures=found,
        last_lines=tuple(lines[-LAST_LINES:]),
    )


def _outcome(stage: Stage, outcome: str, reason: str) -> Outcome:
    return Outcome(name=stage.name, asks=stage.asks, expected_s=stage.expected_s, outcome=outcome, reason=reason)


def _exit_code(command: Sequence[str], limit_s: float, log: TextIO, environment: Mapping[str, str]) -> int | None:
    """Run the command and return its exit code, or None if it had to be killed. Its children are always killed."""
    process = None
    try:
        with _signals_after(signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        assert process is not None
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        if process is not None:
            _signal(process, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _signals_after(*numbers: signal.Signals) -> Iterator[None]:
    """Defer signals that arrive inside the block to its end: a handler that raises while a process is being started
    would leave an orphan. (A signal mask would not do: it applies to one thread, and libraries have others.)"""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in came:
            signal.raise_signal(received)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to all processes of a stage, which has its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
