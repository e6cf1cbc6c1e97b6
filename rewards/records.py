"""JSON Lines files, plain or gzipped → rows, with errors that name the file, the line and the field.

What training reads as text is read here by the same rules (`rollout/text_files.py`): UTF-8 alone, its byte-order mark
left out.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

Row = dict[str, Any]
GZIP = b"\x1f\x8b"
OTHER_FORMATS = {b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"[{": "a JSON array", b"[\n": "a JSON array"}


class BadRecord(ValueError):
    """A file or a row that cannot be used. The message is for the user."""


def read_rows(path: Path, *, required: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, each with the required fields."""
    if path.is_dir():
        raise BadRecord(f"{path} is a directory, and a JSON Lines file is read")
    if not path.is_file():
        raise BadRecord(f"{path}: no such file")
    _refuse_other_formats(path)
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            text = _decoded(path, number, line)
            if text.strip():
                yield _row(path, number, text, required)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    # gzip's own file is one of bytes to read, which its stubs do not say.
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    kind = next((kind for first, kind in OTHER_FORMATS.items() if head.startswith(first)), None)
    if kind is None and head and not head.startswith((b"{", GZIP)) and path.suffix.lower() in (".csv", ".tsv"):
        kind = "a table"
    if kind is not None:
        raise BadRecord(f"{path} is {kind}, and JSON Lines is read: `datasets` converts it (Dataset.to_json)")


def _decoded(path: Path, number: int, line: bytes) -> str:
    if number == 1:
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in line[:64]:
            raise BadRecord(f"{path} is UTF-16 text, or no text at all; `iconv -f UTF-16 -t UTF-8 {path}` converts it")
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(
            f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8; `iconv -f NAME -t UTF-8` converts it"
        ) from None


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
