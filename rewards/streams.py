"""Standard streams that may be closed, full, unheard or of an old encoding → streams that end no command."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, cast

STANDARD = ("stdin", "stdout", "stderr")


class LastingOutput:
    """A standard stream that discards everything once writing fails: hours of work do not end because their reader or
    terminal is gone or the disk that the output goes to is full. What matters of it is in files, too; a command that
    writes no files calls `check_heard`."""

    failed: ClassVar[tuple[IO[str], OSError] | None] = None
    """The standard output that failed last, and how."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def stream(self) -> IO[str]:
        # Anew each time: tests and notebooks replace it. So does rich while it shows a status or a bar, with a proxy of
        # the real one, to which it would then write past this class.
        stream: IO[str] = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str) -> int:
        with self._lasting():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._name == "stdout":
                LastingOutput.failed = (self.stream, error)
            # Otherwise flushing its buffer at exit would fail again and set the exit code.
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.suppress(io.UnsupportedOperation):
                os.dup2(nowhere.fileno(), self.stream.fileno())


def lasting(name: str) -> IO[str] | None:
    """`stdout` or `stderr` as a file for rich, which would itself end the program when a pipe is closed; None if there
    is no such stream, where rich prints nothing."""
    return cast("IO[str]", LastingOutput(name)) if getattr(sys, name) else None


def check_heard() -> None:
    """Raises `OSError` if what was printed did not arrive. For a command that only prints, such as a dry run:
    a script would take its exit code 0 for a result. A reader that has gone, such as `head`, has what it wanted."""
    stream, error = LastingOutput.failed or (None, OSError())
    if stream is LastingOutput("stdout").stream and error.errno != errno.EPIPE:
        raise OSError(f"standard output cannot be written, and part of it is missing: {error.strerror}")


def open_closed_streams() -> None:
    """Open closed standard streams (`>&-`) on /dev/null. Otherwise the next file to be opened would get the stream's
    number, and whatever the libraries' C code prints would end up in it."""
    for number, name in enumerate(STANDARD):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.dup2(opened, number)
            os.set_inheritable(number, True)
        setattr(sys, name, Path(os.devnull).open("w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def escape_unencodable() -> None:
    """Escape characters that the encoding of stdout lacks, as Python does on stderr. No command should fail on a dash
    that an old locale does not know, or on a file name."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or out.encoding.lower() != "utf-8"):
        out.reconfigure(errors="backslashreplace")
