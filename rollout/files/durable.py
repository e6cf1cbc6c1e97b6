"""Files and directories → the disk: complete or absent, whenever the process or the machine dies."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a scratch directory that is synced and becomes `target` if the block succeeds, and is deleted otherwise.

    Whatever was at `target` stays intact until then. Errors of the disk or of safetensors become an `OSError` that
    names `target`.
    """
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with naming(target, scratch):
            scratch.mkdir(parents=True)
            yield scratch
            follow_umask(scratch)
            for file in scratch.iterdir():
                sync(file)
            sync(scratch)
            trash = _set_aside(target)
            scratch.rename(target)
            sync(target.parent)
            shutil.rmtree(trash, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def follow_umask(directory: Path) -> None:
    """Give all files in a new directory the mode that the umask gives to new files. safetensors creates files that only
    their owner can read, but samplers and colleagues may be other users."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextlib.contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Add `path` to disk errors raised in the block: the error of a full disk names no file. Files at or in `scratch`,
    which is gone when the user reads the error, are given the place that they would have had at `path`; an error about
    two files, as of a copy, may name both."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        elif scratch is not None:
            for key in ("filename", "filename2"):
                name = getattr(error, key)
                if isinstance(name, str) and Path(name).is_relative_to(scratch):
                    setattr(error, key, str(path / Path(name).relative_to(scratch)))
            if error.filename2 is not None and error.filename2 == error.filename:  # of the renaming to `path`
                del error.filename2
        raise
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def discard(directory: Path) -> None:
    """Remove a directory, if it exists, so that no reader ever finds half of it."""
    shutil.rmtree(_set_aside(directory), ignore_errors=True)


def _set_aside(directory: Path) -> Path:
    """Move a directory out of its readers' sight. Returns where it is now, if it existed."""
    trash = directory.with_name(f".{directory.name}.gone")
    shutil.rmtree(trash, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rename(trash)
    return trash


def remove_leftovers(root: Path, kind: str) -> None:
    """Delete what a killed process left of directories whose names begin with `kind`; only the writer may call it."""
    for suffix in ("partial", "gone"):
        for leftover in root.glob(f".{kind}[0-9]*.{suffix}"):
            shutil.rmtree(leftover, ignore_errors=True)


def numbered(root: Path, kind: str) -> dict[int, Path]:
    """The directories `<kind><number>` in `root`, by number, in ascending order."""
    found = {
        int(path.name.removeprefix(kind)): path
        for path in root.glob(f"{kind}[0-9]*")
        if re.fullmatch(r"\d{6,}", path.name.removeprefix(kind))
    }
    return dict(sorted(found.items()))


def write_synced(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it is the old one or the new one. Creates its directory if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as compressed JSON Lines: complete or absent, and the same bytes for the same rows."""
    # No time stamp and no name in the header, which would differ.
    with (
        replacing(path) as scratch,
        scratch.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")


@contextlib.contextmanager
def replacing(path: Path, ending: str = "partial") -> Iterator[Path]:
    """Yield a scratch file that is synced and becomes `path` if the block succeeds, and is deleted otherwise. `ending`:
    of its name, which differs between processes that may write the same file at the same time."""
    path = path.resolve() if path.is_symlink() else path  # a link stays one, as it does for any program that writes
    scratch = path.with_name(f".{path.name}.{ending}")
    try:
        with naming(path, scratch):
            yield scratch
            sync(scratch)
            scratch.replace(path)
            sync(path.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)  # left on a full disk
        raise


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(directory: Path, key: str) -> None:
    """Raises `ValueError` if files cannot be created in a directory, or the directory itself cannot be created."""
    try:
        directory.exists()
    except OSError as error:  # a name that no file system accepts
        raise ValueError(f"{key}: {str(directory)[:80]!r} cannot be a directory: {error.strerror}") from error
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if os.path.lexists(path))
    if place == directory.absolute() and not place.is_dir():
        raise ValueError(f"{key}: {directory} is not a directory")
    if not place.is_dir():
        raise ValueError(f"{key}: {directory} cannot be made: {place} is not a directory")
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".rl_engine-"):
            pass
    except OSError as error:
        raise ValueError(f"{key}: nothing can be written in {place}: {error.strerror}") from error
