"""SIGINT, SIGTERM and SIGHUP → the program drops what it is sampling, keeps what is finished, and exits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by Ctrl-C, by a scheduler, and when a terminal is closed or a connection lost, respectively."""

ECHO_S = 3.0
"""Repeats within this time count as one request: the terminal or the scheduler signals the whole process group, and a
launcher forwards the signal once more."""

GRACE_S = 120.0
"""A command that was asked to stop saves and exits within seconds; after this long it is killed."""

LIBC = ctypes.CDLL(None)  # loaded here, because nothing may be loaded between fork and exec
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies for whatever reason; safe between fork and
    exec. `parent`: the parent's pid, to detect that it is already gone, in which case the kernel would send nothing."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def kill_session(pid: int) -> None:
    """Kill a process that leads a session of its own, and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def stops_handled(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Handle the signals in `STOPS` with `handler` inside the block. An ignored SIGHUP (`nohup`) stays ignored."""
    numbers = [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Stopped(BaseException):
    """The program was asked to stop. Not an `Exception`, which some libraries catch and ignore."""


class StopRequest:
    """Whether the program was asked to stop, and by which signal. A second request ends it at once.

    A request raises `Stopped` wherever the program is, except inside `deferred`, which protects finished work. A nested
    `raised` lets it raise again, around long work that can be dropped. Main thread only, as for all signals.
    """

    def __init__(self, signum: int | None = None) -> None:
        self.signum = signum
        self.others: list[StopRequest] = []
        """Requests of other runs in the same process, to which this one is passed on."""
        self._asked = 0.0  # monotonic seconds
        self._raises = True

    @property
    def asked(self) -> bool:
        return self.signum is not None

    @property
    def raises(self) -> bool:
        """Whether a request arriving now would raise."""
        return self._raises

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in shells; 0 if there was no request."""
        return 0 if self.signum is None else 128 + self.signum

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals in `STOPS` inside the block."""
        with stops_handled(self._handle):
            try:
                yield
            except ImportError:  # some libraries turn a request during their import into this
                if self.asked:
                    raise Stopped from None
                raise

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block a request is only recorded."""
        return self._raising(False)

    def raised(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block a request raises `Stopped`; one that was recorded earlier raises on entry."""
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

    def record(self, number: int) -> None:
        """Take over a request that another process of this run received; ignored if this one has a request already."""
        if self.signum is None:
            self.signum, self._asked = number, time.monotonic()
            for other in self.others:
                other.record(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.record(number)
            if self._raises:
                raise Stopped
        elif time.monotonic() - self._asked > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
