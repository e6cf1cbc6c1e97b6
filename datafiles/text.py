"""A user's text file → its lines or its whole text. Other encodings than UTF-8 are refused, by file and line.

Also: an exception → the one line of it that is shown to the user, for all rooms.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
# Byte-order marks, the longer ones first: one of UTF-32 begins like one of UTF-16.
OTHER_UNICODE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# Without a byte-order mark: which of the first four bytes are zero in a text that begins with two ASCII characters.
WITHOUT_MARK: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}


def new_output(log: Path, seen: int, *, ended: bool) -> bytes:
    """What a process has written into its log after the first `seen` bytes; until it has ended, only complete lines."""
    with log.open("rb") as file:
        file.seek(seen)
        new = file.read()
    return new if ended else new[: new.rfind(b"\n") + 1]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, because libraries append tracebacks and advice; its type if there is no
    message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_one_line(error: BaseException) -> str:
    """An error's whole message as one line; its type if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


class TextFileError(ValueError):
    """A file in a format or encoding that cannot be read. The message names the file and a way out."""


class TwiceError(ValueError):
    """A JSON object has a key twice, of which Python would silently keep the last. The message names the key."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` for JSON written by users. Raises `TwiceError` for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def read_json(text: str) -> Any:
    """Parse JSON. Raises `ValueError` if it is invalid, and `TwiceError` for an object with a duplicate key."""
    return json.loads(text, object_pairs_hook=each_once)


def read_report(path: Path) -> Any:
    """The content of a JSON file. Raises `ValueError`, with a one-line message that names the file, if damaged."""
    try:
        return read_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def json_lines(path: Path, *, grows: bool = False) -> Iterator[Any]:
    """The values in a JSON Lines file that we wrote, plain or gzipped. Blank lines, which editors leave, are skipped.
    With `grows`, the file was written line by line, and a last line that a crash cut short is skipped too.

    Raises `ValueError`, with a one-line message that names the file, if it is damaged.
    """
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                if grows and not line.endswith(b"\n"):
                    return
                message = f"line {number} is not JSON: {first_line(error)}"
                remedy = "" if _is_packed(path) else ": mend that line, or remove it"
                raise ValueError(f"{path} cannot be read ({message}){remedy}") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) for each line of a UTF-8 file, plain or gzipped, without its byte-order mark. A line ends
    with a line feed, a carriage return or both.

    Raises `TextFileError`, which names the line, for another encoding.
    """
    with _open(path) as file:
        # Split bytes, not text: `str.splitlines` would also split at U+2028 and the like.
        lines = (line for part in file for line in part.splitlines(keepends=True))
        for number, line in enumerate(lines, 1):
            if number == 1:
                refuse_other_unicode(path, line)
                line = line.removeprefix(BOM)
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise TextFileError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is not UTF-8; `iconv -f NAME -t UTF-8` "
                    "converts it, NAME being the encoding it is in (often windows-1252)"
                ) from None


def read_text(path: Path) -> str:
    """The whole text of a UTF-8 file. Raises `TextFileError` as `text_lines` does."""
    return "".join(line for _, line in text_lines(path)).replace("\r\n", "\n").replace("\r", "\n")


def refuse_other_unicode(path: Path, head: bytes) -> None:
    """Raise `TextFileError` if the first bytes of a file show another Unicode encoding, or that it is not text."""
    name = next((name for mark, name in OTHER_UNICODE.items() if head.startswith(mark)), None)
    if name is None:
        name = WITHOUT_MARK.get(tuple(byte == 0 for byte in head[:4]))
    if name is not None:
        convert = f"iconv -f {name} -t UTF-8"
        command = f"gunzip -c {path} | {convert}" if _is_packed(path) else f"{convert} {path}"
        raise TextFileError(f"{path} is {name} text: `{command}` converts it")
    if b"\x00" in head[:64]:
        raise TextFileError(f"{path}, line 1: a zero byte, which no text has: it is a file of another kind")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzipped file. Raises `TextFileError` for a damaged gzip file, whose own errors include EOFError,
    which the command-line parser would treat as Ctrl-C."""
    try:
        # gzip.open returns a binary reader here, which its type stubs do not say.
        with cast("IO[bytes]", gzip.open(path, "rb")) if _is_packed(path) else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TextFileError(f"{path} cannot be read (a damaged gzip file: {first_line(error)})") from error
