"""Ctrl-C while a command's imports run → one line and exit code 130. Here because every package may import it."""

from __future__ import annotations

import os
import signal
from types import FrameType


def leave_while_loading() -> None:
    """Make Ctrl-C end the process at once, with one line of output, until `leave_tidily` is called or a `StopRequest`
    listens: there is nothing to clean up yet.

    For the first lines of a command, whose imports take a second, and longer on a slow disk.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored, as in the background
        signal.signal(signal.SIGINT, _leave)


def leave_tidily() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`, as it did first: there are workers to end, or a terminal's cursor
    to show again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, b"error: stopped\n")
    os._exit(128 + number)
