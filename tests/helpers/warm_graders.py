"""Grading processes forked from one that has warmed up: a grader starts in a tenth of a second instead of two.

What takes long is importing sympy and the first parses. One process does both and forks a fork server for every grader
that connects to it. `tests/rewards/workers` starts graders as users do.
"""

from __future__ import annotations

import atexit
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from rewards.workers import fork_server, wire, worker
from rewards.workers.processes import ForkServerProcess, environment


def warm_at() -> str:
    """Where this test process's warm process listens."""
    with _starting:
        return _start()


_starting = threading.Lock()


@functools.cache
def _start() -> str:
    """Start the warm process, which ends when its standard input does."""
    address = f"\0warm-graders-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
            env=environment(own_code=False),
        )
    atexit.register(process.communicate, timeout=10)
    return address


class Forked(psutil.Process):
    """The part of `subprocess.Popen`'s interface that is used."""

    def poll(self) -> int | None:
        return None if self.is_running() else 0

    def wait(self, timeout: float | None = None) -> int:
        try:
            return super().wait(timeout) or 0
        except psutil.TimeoutExpired as error:
            raise subprocess.TimeoutExpired("fork", timeout or 0) from error


class WarmForkServer(ForkServerProcess):
    """A fork server that begins with everything imported."""

    at = ""

    def __init__(self, settings: wire.Message) -> None:
        self._control = socket.socket(socket.AF_UNIX)
        self._buffer = bytearray()
        self._ready = False
        self._control.connect(self.at)
        variables = environment(own_code=settings["function"] is not None)
        self._control.sendall(wire.encode({"environment": variables, "directory": str(Path.cwd())}))
        told = wire.receive(self._control, self._buffer)
        assert told is not None
        self._process: Any = Forked(told["pid"])
        self._control.sendall(wire.encode(settings))


def use(at: str) -> None:
    """Let all graders of this process start from the warm process at an address."""
    from rewards.workers import pool

    WarmForkServer.at = at
    vars(pool)["ForkServerProcess"] = WarmForkServer


def become_fork_server(control: socket.socket) -> None:
    """Called in the fork: what `python -m rewards.workers.fork_server` is after its imports."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    told = wire.receive(control, bytearray())
    assert told is not None
    os.chdir(told["directory"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.path[:] = list(dict.fromkeys([*told["environment"]["PYTHONPATH"].split(os.pathsep), *sys.path]))
    control.sendall(wire.encode({"pid": os.getpid()}))
    sys.argv[1:] = [str(control.detach())]
    fork_server.main()


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    worker.preload({"tasks": []})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        control, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                become_fork_server(control)
            finally:
                os._exit(0)
        control.close()


if __name__ == "__main__":
    main()
