"""Finished problems ↔ a file next to the output, so that an interrupted evaluation need not sample them again.

The first line has the settings that the numbers depend on; a file with other settings is refused. Every further line is
the outcome of one problem by one policy (`contender` in the file).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from datafiles.text import json_lines
from evals.launch.group import is_seen
from evals.scoring.outcomes import Outcome
from rollout.files.durable import naming, write_synced
from rollout.files.exclusive import hold, release

ADDED = frozenset({"asked_sha256"})
"""Settings that earlier versions did not write: a file without them may be continued."""
Settings = dict[str, Any]
Key = tuple[str, str, str]
"""(suite, label of the policy, problem id)"""


class PartialResultsError(ValueError):
    """The partial results belong to another evaluation. The message says what differs."""


@dataclass
class PartialResults:
    """One process's view of `FILE.partial.jsonl`. Ranks above 0 write to their own `FILE.partial-1.jsonl` …"""

    output: Path
    settings: Settings
    rank: int = 0
    _records: dict[Key, dict[str, Any]] = field(default_factory=dict, init=False)
    _held: IO[str] | None = field(default=None, init=False)
    """The open lock file, while this process is working."""

    @property
    def path(self) -> Path:
        return self._path_of(self.rank)

    @property
    def lock(self) -> Path:
        """The lock file, which exists while a process is working. The results cannot serve as one: they get replaced,
        and where locks are mandatory (CIFS) nobody could write to them."""
        return self.output.with_suffix(".partial.lock")

    def _path_of(self, rank: int) -> Path:
        return self.output.with_suffix(f".partial-{rank}.jsonl" if rank else ".partial.jsonl")

    def _paths(self) -> list[Path]:
        name = re.compile(rf"{re.escape(self.output.stem)}\.partial(-\d+)?\.jsonl")
        return sorted(path for path in self.output.parent.glob("*.jsonl") if name.fullmatch(path.name))

    @property
    def is_begun(self) -> bool:
        """Whether there is an unfinished evaluation to continue.

        Raises `PartialResultsError` if a file of that name is not one.
        """
        for path in self._paths():
            try:
                header: Any = next(json_lines(path, grows=True), {"settings": {}})
            except ValueError:
                header = None
            if not isinstance(header, dict) or "settings" not in header:
                raise PartialResultsError(
                    f"{path} has the name of an unfinished evaluation but is not one: move it away, or give another "
                    "--output"
                )
        return bool(self._paths())

    def begin(self, *, overwrite: bool) -> None:
        """Merge what earlier processes left into one clean file. Called by the main rank before the others read; holds
        the lock until `close`.

        Raises `PartialResultsError` if the results belong to another evaluation, and `OccupiedError` if another process
        is working on them: each of the two would delete the other's results when it is done.
        """
        self._held = hold(self.lock, self.output)
        if overwrite:
            self.remove()
        self.read()
        text = json.dumps({"settings": self.settings}) + "\n"
        text += "".join(json.dumps(record) + "\n" for record in self._records.values())
        write_synced(self.path, text)
        for path in self._paths():
            if path != self.path:
                path.unlink()

    def close(self) -> None:
        """Release the lock, so that other processes may continue the evaluation."""
        if self._held is not None:
            release(self.lock, self._held)
            self._held = None

    def read(self) -> None:
        """Read the finished problems of all ranks. A last line that a crash cut short is skipped.

        Raises `PartialResultsError` if they belong to another evaluation, or if this rank does not see what the main
        one has begun, which would then lack this rank's results.
        """
        if self.rank and not is_seen(self._path_of(0)):
            raise PartialResultsError(
                f"--output: rank {self.rank} does not see what rank 0 writes in {self.output.parent}: give a file on a "
                "file system that all ranks share"
            )
        for path in self._paths():
            lines = json_lines(path, grows=True)
            header = next(lines, {"settings": self.settings})
            changed = differences(header.get("settings"), json.loads(json.dumps(self.settings)))
            if changed:
                raise PartialResultsError(
                    f"{path} holds an unfinished evaluation with other settings: {'; '.join(changed)}. "
                    "--overwrite starts over"
                )
            for record in lines:
                self._records[(record["suite"], record["contender"], record["problem_id"])] = record

    def find(self, suite: str, policy: str, problem_id: str) -> dict[str, Any] | None:
        """The record of a finished problem."""
        return self._records.get((suite, policy, problem_id))

    def add(self, suite: str, policy: str, outcomes: Sequence[Outcome]) -> None:
        """Append the outcomes of problems that were sampled together, in one write."""
        records = [{"suite": suite, "contender": policy, **outcome.to_json()} for outcome in outcomes]
        lines = [] if self.path.is_file() else [{"settings": self.settings}]
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in (*lines, *records)))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        for path in self._paths():
            path.unlink()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The differences between two nested settings, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new} - (ADDED - old.keys()))
        return [
            line for key in keys for line in differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where or 'the first line'} was {old!r} and is {new!r}"]
