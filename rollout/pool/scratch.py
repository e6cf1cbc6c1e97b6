"""A directory for files that nobody needs when their process is gone: removed by it, or by the next one to look."""

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


@dataclass(frozen=True, slots=True)
class ScratchDirectory:
    """`path` lies in the system's directory for temporary files and is locked while its process lives."""

    path: Path
    _lock: TextIO

    @classmethod
    def make(cls, prefix: str) -> ScratchDirectory:
        """A new one; those of the same prefix that a process has left behind, killed perhaps, are removed."""
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            # Gone in between, in use, or not ours: either is no affair of ours.
            with contextlib.suppress(OSError), _open_lock_of(left) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
        path = Path(tempfile.mkdtemp(prefix=prefix))  # for its owner alone
        lock = os.fdopen(
            os.open(path / LOCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8"
        )
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _open_lock_of(directory: Path) -> TextIO:
    """The lock of a directory that this user made, opened without a change to it.

    Anybody may give a name like ours to something in a shared directory: what another user owns, or leads elsewhere by
    a link, is not touched. Raises `OSError` for it.
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
