"""A process that begins or resumes a run → a line of starts.jsonl: when, where, with which code, command, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datafiles.text import json_lines
from evals.scoring.versions import package_versions
from rl_engine.run.origin.environment import command, commit, machine, ranks
from rollout.files.durable import write_synced

STARTS = "starts.jsonl"
"""Two objects per process, one for its start and one for its end; a killed process leaves only the first."""


def note_start(run: Path, done: int, recorded: float, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Record that this process continues the run after step `done`; −1 is a new run and clears earlier records.
    `recorded`: the last step in metrics.jsonl, −1 if there is none: a run stopped in an evaluation has yet to record
    step `done`. `inputs`: digests of what it reads besides its data (`inputs.py`). `settings`: its configuration,
    nested. Returns the recorded line; see `is_last`."""
    start = {
        "began": _now(),
        "after_step": max(done, 0),
        "recorded_step": recorded,
        "command": command(),
        "machine": machine(),
        "ranks": ranks(),
        "versions": package_versions(),
        "commit": commit(),
        "inputs": {**inputs},
        "settings": {**settings},
    }
    return _append(run, start, anew=done < 0)


def is_last(run: Path, line: str) -> bool:
    """Whether a start is the last thing recorded in the directory. If not, the directory was moved, removed, or given
    to another run."""
    path = run / STARTS
    return path.is_file() and path.read_text(encoding="utf-8").splitlines()[-1:] == [line]


def note_end(run: Path) -> None:
    """Record that this process leaves the run."""
    _append(run, {"ended": _now()})


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The recorded starts, each joined with its end; empty for runs of earlier versions.

    Raises a one-line `ValueError` that names the file if it is damaged.
    """
    found: list[dict[str, Any]] = []
    for entry in json_lines(run / STARTS) if (run / STARTS).is_file() else ():
        if not isinstance(entry, dict):
            raise ValueError(f"{run / STARTS} holds a line that is not a start's: {entry!r:.80}: remove it")
        if "began" in entry:
            found.append(entry)
        elif found:
            found[-1] |= entry
    return found


def recorder_of(step: float, starts: Sequence[Mapping[str, Any]]) -> int:
    """The place among the starts, of which there is at least one, of the process that wrote a step's line."""
    for place in range(len(starts) - 1, 0, -1):
        # A process drops the lines of later steps. Runs of earlier versions lack `recorded_step`.
        if starts[place].get("recorded_step", starts[place]["after_step"]) < step:
            return place
    return 0


def wall_s(starts: Sequence[Mapping[str, Any]]) -> float | None:
    """Total seconds over all processes of the run; None if one did not record its end, or the clock was set back."""
    if not starts or any("ended" not in start for start in starts):
        return None
    moments = [(datetime.fromisoformat(start["began"]), datetime.fromisoformat(start["ended"])) for start in starts]
    spent_s = [(ended - began).total_seconds() for began, ended in moments]
    return sum(spent_s) if min(spent_s) >= 0 else None


def _append(run: Path, entry: dict[str, Any], *, anew: bool = False) -> str:
    path, line = run / STARTS, json.dumps(entry)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and not anew else []
    write_synced(path, "".join(f"{each}\n" for each in [*lines, line]))
    return line


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
