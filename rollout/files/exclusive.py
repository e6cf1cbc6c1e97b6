"""An output → the lock file beside it that keeps two processes from writing the same output at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class OccupiedError(ValueError):
    """Another process is writing the same output."""


@contextlib.contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Hold the lock on an output for the duration of the block. It is released however the process ends.

    Raises `OccupiedError`, and `ValueError` for `.`, `..` or `/`, beside which nothing can be made.
    """
    if output.name in ("", ".."):
        raise ValueError(f"--output: {str(output)!r} is an existing place, not a new one: name a new directory")
    lock = output.with_name(f".{output.name}.lock")
    file = hold(lock, output)
    try:
        yield
    finally:
        release(lock, file)


def hold(lock: Path, output: Path) -> IO[str]:
    """Take the lock, until `release`. Raises `OccupiedError` if another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a", encoding="utf-8")
        try:
            taken = takes_lock(file)
        except OSError:
            taken = True  # a file system without locks keeps nobody from writing
        if not taken:
            file.close()
            raise OccupiedError(
                f"--output: another process is at work on {output} ({lock}): wait for it, or give another --output"
            )
        if is_at(file, lock):
            return file
        file.close()  # its holder released it after we opened it


def release(lock: Path, file: IO[str]) -> None:
    lock.unlink(missing_ok=True)
    file.close()


def takes_lock(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if nobody else holds it. Raises `OSError` on a file system without locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(file: IO[str], path: Path) -> bool:
    """Whether `path` still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
