"""A directory for files that are not needed after their process: removed by it, or by the next process that looks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LOCK = ".in_use"
WORKERS = "rl_engine_worker_"
"""The prefix of the workers' directories."""


@dataclass(frozen=True, slots=True)
class ScratchDirectory:
    """A directory among the system's temporary files that is locked while its process lives."""

    path: Path
    _lock: TextIO

    @classmethod
    def make(cls, prefix: str) -> ScratchDirectory:
        """Create a directory, and remove those with the same prefix that dead processes have left behind."""
        remove_left(prefix)
        path = Path(tempfile.mkdtemp(prefix=prefix))  # accessible to its owner only
        lock = os.fdopen(
            os.open(path / LOCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8"
        )
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_left(prefix: str) -> None:
    """Remove the directories with this prefix that dead processes have left behind."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Removed in the meantime, in use, or not ours: leave it alone.
        with contextlib.suppress(OSError), _open_lock_of(left) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)


def _open_lock_of(directory: Path) -> TextIO:
    """Open the lock of a directory that this user made, without changing it.

    In a shared directory anyone may create something with a name like ours. Anything that another user owns, or that is
    a link, is not touched: raises `OSError`.
    """
    inside = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        lock = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
        file = os.fdopen(lock, encoding="utf-8")
        owners = {os.fstat(descriptor).st_uid for descriptor in (inside, lock)}
        if owners != {os.geteuid()} or not stat.S_ISREG(os.fstat(lock).st_mode):
            file.close()
            raise PermissionError(f"{directory} was not made by this user")
        return file
    finally:
        os.close(inside)
