"""JSON Lines files, plain or gzipped → rows, with errors that name the file, the line and the field."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


class BadRecord(ValueError):
    """A file or a row that cannot be used. The message is for the user."""


def read_rows(path: Path, *, required: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, each with the required fields."""
    if not path.is_file():
        raise BadRecord(f"{path}: no such file")
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(path, number, line, required)


def refuse_existing(output: Path | None) -> None:
    """Raises `BadRecord` rather than replace a file."""
    if output is not None and output.exists():
        raise BadRecord(f"--output: {output} is there already: nothing was written. Move it away, or give another name")


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _row(path: Path, number: int, line: str, required: tuple[str, ...]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRecord(f"{path}, line {number}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise BadRecord(f"{path}, line {number}: a row must be an object, this is a {type(row).__name__}")
    missing = [field for field in required if field not in row]
    if missing:
        raise BadRecord(f"{path}, line {number}: no field {missing[0]!r}; found {', '.join(sorted(row))}")
    return row


def chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
