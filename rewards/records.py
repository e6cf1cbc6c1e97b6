"""JSON Lines files, plain or gzipped → rows, with errors that name the file, the line and the field.

These are files that rl_engine itself wrote; `datafiles` reads users' files.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from datafiles.text import TextFileError, TwiceError, read_json, text_lines

Row = dict[str, Any]
T = TypeVar("T")


class BadRecord(ValueError):
    """A file or row that cannot be used. The message is meant for the user."""


def read_rows(path: Path, *, required: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a .jsonl or .jsonl.gz file: at least one, each with all required fields."""
    if path.is_dir():
        raise BadRecord(f"{path} is a directory: give a JSON Lines file")
    if not path.is_file():
        raise BadRecord(f"{path}: no such file")
    found = False
    try:
        for number, line in text_lines(path):
            if line.strip():
                yield _row(path, number, line, required)
                found = True
    except TextFileError as error:
        raise BadRecord(str(error)) from None
    if not found:
        raise BadRecord(f"{path} holds no rows")


def refuse_existing(output: Path | None) -> None:
    """Create the output's directory. Raises `BadRecord` if the file exists or cannot be written."""
    if output is None:
        return
    if output.exists():
        raise BadRecord(f"--output: {output} already exists: nothing was written. Move it away, or give another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRecord(f"--output: {output} cannot be written: {error.strerror}") from error
    if not os.access(output.parent, os.W_OK):
        raise BadRecord(f"--output: nothing can be written in {output.parent}")


def _row(path: Path, number: int, line: str, required: tuple[str, ...]) -> Row:
    try:
        row = read_json(line)
    except TwiceError as error:
        raise BadRecord(f"{path}, line {number}: {error}") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"{path}, line {number}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise BadRecord(f"{path}, line {number}: a row must be an object, this is a {type(row).__name__}")
    missing = [field for field in required if field not in row]
    if missing:
        raise BadRecord(f"{path}, line {number}: no field {missing[0]!r}; found {', '.join(sorted(row))}")
    return row


def chunks(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
