"""Stages → what came of each: processes one after the other, each within its limit and all within the deadline."""

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
"""With less left no stage is begun: nothing would come of it."""
GRACE_S = 5.0
"""That a process has to leave when it is asked to."""
LAST_LINES = 25
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "160",
    # Empty is not set: else every stage would compile the libraries' Python again.
    "PYTHONDONTWRITEBYTECODE": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a stage."""

    name: str
    asks: str
    outcome: str
    """PASSED, FAILED, OVERLONG, CUT or SKIPPED."""
    seconds: float = 0.0
    expected_s: float = 0.0
    """What it takes on a card like an H100."""
    exit: int | None = None
    reason: str = ""
    figures: tuple[dict[str, Any], ...] = ()
    """What it measured, up to where it ended."""
    last_lines: tuple[str, ...] = ()
    """Of its log."""

    @property
    def passed(self) -> bool:
        return self.outcome == PASSED


def run_all(stages: Sequence[Stage], deadline: float, out: Path) -> Iterator[Outcome]:
    """Run each stage, whatever came of those before it, and yield its outcome when it is over.

    `deadline` is on the monotonic clock; `out` gets `<stage>.log`.
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
    """Run one stage for at most so many seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_contact-") as place:
        figures = Path(place) / "figures.jsonl"
        with log.open("w") as file:
            code = _exit_code(stage.command, limit_s, file, {FILE: str(figures)})
        found = (*noted(figures), *stage.read())
    if code is None:
        # A limit that the deadline shortened is the deadline's.
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
    """Of the command, or None where it had to be ended. Whatever it started is ended with it."""
    process = None
    try:
        with _heard_after(signal.SIGTERM, signal.SIGINT):
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
def _heard_after(*numbers: signal.Signals) -> Iterator[None]:
    """Signals that come inside the block are heard at its end: a handler that raises while a process is being started
    would leave one that nobody knows of. (A mask would not do: it holds for one thread, and libraries have others.)"""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for heard in came:
            signal.raise_signal(heard)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To all processes of the stage: it was given a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
