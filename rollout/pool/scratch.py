"""A directory for files that nobody needs when their process is gone: removed by it, or by the next one to look."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LOCK = ".in_use"


@dataclass(frozen=True, slots=True)
class ScratchDirectory:
    """`path` lies in the system's directory for temporary files and is locked while its process lives."""

    path: Path
    _lock: TextIO

    @classmethod
    def make(cls, prefix: str) -> ScratchDirectory:
        """A new one; those of the same prefix that a process has left behind, killed perhaps, are removed."""
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
            # Gone in between, or another user's: either is no affair of ours.
            with contextlib.suppress(OSError), left.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left.parent)
        path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = (path / LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()
