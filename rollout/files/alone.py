"""A file beside an output → the lock that keeps two processes from making the same output at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class OccupiedError(ValueError):
    """Another process is at work on the same output."""


@contextlib.contextmanager
def alone_at(output: Path) -> Iterator[None]:
    """No other process is in such a block for the same output. The lock goes with the process, however that ends.

    Raises `OccupiedError`, and `ValueError` for `.`, `..` or `/`, beside which nothing can be made.
    """
    if output.name in ("", ".."):
        raise ValueError(f"--output: {str(output)!r} has no name to be made by: give a new directory")
    lock = output.with_name(f".{output.name}.lock")
    file = hold(lock, output)
    try:
        yield
    finally:
        release(lock, file)


def hold(lock: Path, output: Path) -> IO[str]:
    """Take the lock, until `release`. Raises `OccupiedError` where another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a", encoding="utf-8")
        if not _takes_lock(file):
            file.close()
            raise OccupiedError(
                f"--output: another process is at work on {output} ({lock}): wait for it, or give another --output"
            )
        if _is_at(file, lock):
            return file
        file.close()  # whoever held it has ended since it was opened


def release(lock: Path, file: IO[str]) -> None:
    lock.unlink(missing_ok=True)
    file.close()


def _takes_lock(file: IO[str]) -> bool:
    """Whether nobody else holds it, or there are no locks on this file system."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether it is this file that has the name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
