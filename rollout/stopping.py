"""SIGINT, SIGTERM and SIGHUP → a program that drops what it samples, keeps what is finished, and leaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler, a terminal that is closed or a connection that is lost."""

ECHO_S = 3.0
"""A launcher passes on what the terminal or the scheduler has sent to the whole group: one request comes twice."""

GRACE_S = 120.0
"""A command that was asked to stop saves and leaves, which takes seconds; after so long it is killed."""

LIBC = ctypes.CDLL(None)  # loaded here, since between fork and exec nothing may be
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when the one that started it dies, by whatever cause; may be called
    between fork and exec. `parent`: its number. Where it is gone already the kernel would send nothing."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def kill_session(pid: int) -> None:
    """End a process that leads a session of its own, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def hear_stops(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` have the signals by which someone asks a program to stop; those that had them before. A hang-up
    that is to be ignored (`nohup`) still is."""
    heard = [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def leave_while_loading() -> None:
    """Ctrl-C ends the process at once, in one line, until a `StopRequest` is heard: there is nothing to tidy up yet.

    For the first lines of a command: what it imports then takes a second, and more on a slow disk.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored, as in the background
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, b"error: stopped\n")
    os._exit(128 + number)


class Stopped(BaseException):
    """Someone asked the program to stop. Not an `Exception`: a library that goes on after those does not after this."""


class StopRequest:
    """Whether someone asked the program to stop, and by which signal. A second request ends it at once.

    A request raises `Stopped` wherever the program is, except inside `noted`, where what is finished is kept, and
    again inside `raised`, where what takes long can be dropped. For the main thread, as all signals.
    """

    def __init__(self, signum: int | None = None) -> None:
        self.signum = signum
        self.others: list[StopRequest] = []
        """Those of runs in the same process, which hear of it too."""
        self._asked = 0.0  # monotonic seconds
        self._raises = True

    @property
    def asked(self) -> bool:
        return self.signum is not None

    @property
    def raises(self) -> bool:
        """Whether a request that comes now raises."""
        return self._raises

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells count; 0 where nobody asked."""
        return 0 if self.signum is None else 128 + self.signum

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear the signals of `STOPS` inside the block."""
        before = hear_stops(self._hear)
        try:
            yield
        except ImportError:  # what some libraries make of a request that comes while they are loaded
            if self.asked:
                raise Stopped from None
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block a request is noted, and nothing more."""
        return self._raising(False)

    def raised(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block a request raises `Stopped`; one that was noted before, at its beginning."""
        return self._raising(True)

    @contextlib.contextmanager
    def _raising(self, raises: bool) -> Iterator[None]:
        before = self._raises
        try:
            self._raises = raises
            if raises and self.asked:
                raise Stopped
            yield
        finally:
            self._raises = before

    def heed(self, number: int) -> None:
        """Another process of this run was asked, by that signal; where this one was too, nothing is new."""
        if self.signum is None:
            self.signum, self._asked = number, time.monotonic()
            for other in self.others:
                other.heed(number)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.heed(number)
            if self._raises:
                raise Stopped
        elif time.monotonic() - self._asked > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
