"""The grader's side of its processes: start the fork server, get workers from it, talk to them, kill and close.

Nothing here depends on how the user's program uses processes: it needs no `__main__` guard, the start method
does not matter, Ctrl-C in a terminal does not reach the workers, and their standard output is discarded.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from rewards.workers import wire

START_LIMIT_S = 180.0
SPAWN_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
REAP_LIMIT_S = 1.0
SIGNAL_NAMES = {one.value: one.name for one in signal.Signals}
SECRET = re.compile("TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
"""Matches the names of environment variables that hold secrets."""


class WorkersFailed(RuntimeError):
    """The grading processes could not be started. Nothing can be graded, so the error is passed on to the user."""


@dataclass(slots=True, eq=False)
class Worker:
    """One grading process as the grader sees it."""

    pid: int
    connection: socket.socket
    ending: socket.socket
    """The socket on which the fork server sends the exit code of this worker."""
    assigned: deque[int] = field(default_factory=deque)
    """Items sent and not yet answered, in order; the first is the one being judged."""
    head_since: float = 0.0
    """When the first assigned item became the one being judged (monotonic seconds)."""
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    started: float = field(default_factory=time.monotonic)
    ready: bool = False
    """Whether the worker has reported that its imports are done and its limits are set."""
    leaving: bool = False
    """Whether the worker has announced that it will end after its last reply."""
    overdue_since: float | None = None
    """When the grader gave up on the item being judged and asked for the worker to be killed (monotonic seconds)."""

    @property
    def overdue(self) -> bool:
        return self.overdue_since is not None

    def exit_code(self) -> int | None:
        """The exit code of a worker that has ended, by `subprocess`'s convention: -11 is signal 11. None if the fork
        server does not report it: it may be gone too."""
        self.ending.settimeout(REAP_LIMIT_S)
        try:
            code = self.ending.recv(16)
        except OSError:
            return None
        return int(code) if code else None

    def close(self) -> None:
        self.connection.close()
        self.ending.close()


def in_words(exit_code: int | None) -> str:
    """An exit code in words, such as `killed by signal 11 (SIGSEGV)` or `exit status 1`."""
    if exit_code is None:
        return "cause unknown"
    if exit_code >= 0:
        return f"exit status {exit_code}"
    return f"killed by signal {-exit_code} ({SIGNAL_NAMES.get(-exit_code, 'without a name')})"


class ForkServerProcess:
    """The child process that forks workers. One per grader, restarted when it dies."""

    def __init__(self, settings: wire.Message) -> None:
        ours, theirs = socket.socketpair()
        self._control = ours
        self._buffer = bytearray()
        try:
            self._process = subprocess.Popen(  # no part of the command line comes from the user
                [sys.executable, "-m", "rewards.workers.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=environment(own_code=settings["function"] is not None),
            )
        finally:
            theirs.close()
        self._ready = False
        self._control.sendall(wire.encode(settings))

    def spawn(self) -> Worker:
        """Fork one worker. The first call waits for the fork server's imports."""
        try:
            if not self._ready:
                self._expect_ready()
            self._control.settimeout(SPAWN_LIMIT_S)
            self._control.sendall(wire.encode({"do": "spawn"}))
            pid, (connection, ending) = self._receive_worker()
        except (OSError, EOFError) as error:
            status = self._process.poll()
            raise WorkersFailed(
                f"the grading workers did not start: {error or type(error).__name__}"
                + (f" (the process ended with status {status})" if status is not None else "")
            ) from error
        connection.setblocking(False)
        return Worker(pid=pid, connection=connection, ending=ending)

    def kill(self, worker: Worker) -> None:
        with contextlib.suppress(OSError):  # the fork server is gone, and so are its workers
            self._control.sendall(wire.encode({"do": "kill", "pid": worker.pid}))

    def close(self) -> None:
        """End the fork server and, through it, every worker; wait until they are gone."""
        self._control.close()
        try:
            self._process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _expect_ready(self) -> None:
        self._control.settimeout(START_LIMIT_S)
        if wire.receive(self._control, self._buffer) is None:
            raise EOFError("it ended while importing math-verify")
        self._ready = True

    def _receive_worker(self) -> tuple[int, list[socket.socket]]:
        """The reply to `spawn`: the pid, from the message, and the two sockets sent with it."""
        descriptors: list[int] = []
        while True:
            message = wire.take(self._buffer)
            if message is not None:
                return int(message["pid"]), [socket.socket(fileno=descriptor) for descriptor in descriptors]
            chunk, received, _, _ = socket.recv_fds(self._control, 4096, 4)
            for descriptor in received:
                os.set_inheritable(descriptor, False)  # Python does that only for descriptors that it opens
            descriptors += received
            if not chunk:
                raise EOFError("it ended unexpectedly")
            self._buffer += chunk


def environment(*, own_code: bool) -> dict[str, str]:
    """The user's environment, with a PYTHONPATH on which the child finds this package and the user's modules.

    Secrets are removed from the environment of processes that only read what models wrote; a user's reward function may
    need them.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    entries = [package_parent, *(entry or str(Path.cwd()) for entry in sys.path)]
    if own_code:
        # A user's module is often in the working directory, which is not on the sys.path of a console script.
        entries.append(str(Path.cwd()))
    kept = {name: value for name, value in os.environ.items() if own_code or not SECRET.search(name)}
    # OpenBLAS starts a thread per core when numpy is imported, and a process that forks should have only one thread.
    kept = {"OPENBLAS_NUM_THREADS": "1", **kept}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(entries)), "PYTHONSAFEPATH": "1"}
