"""The process that holds math-verify in memory and forks grading workers on request.

Importing sympy takes a second, forking takes milliseconds: a killed worker is replaced at once. This
process is small, has one thread and never judges anything itself, so forking it is safe whatever the
user's own process does with threads, CUDA or event loops.

It is started as `python -m rewards.workers.fork_server FD`, where FD is a socket to the grader. Requests are JSON
messages (`rewards.workers.wire`): `spawn` returns the worker's pid and two sockets, one connected to the worker and
one on which this process sends the worker's exit code once it has ended. `kill` ends a worker. End of file means that
the grader is gone: everything dies.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from rewards.workers import wire
from rewards.workers.worker import preload, serve

PARENT_POLL_S = 2.0


def main() -> None:
    # The grader may end while this process loads.
    with socket.socket(fileno=int(sys.argv[1])) as control, contextlib.suppress(ConnectionError):
        buffer = bytearray()
        settings = wire.receive(control, buffer)
        if settings is None:
            return
        preload(settings)
        control.sendall(wire.encode({"ready": True}))
        with open(os.devnull, "w", encoding="ascii") as sink:  # noqa: PTH123
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        ForkServer(control, buffer, settings).run()


class ForkServer:
    """Forks, kills and reaps workers, and holds no other state."""

    def __init__(self, control: socket.socket, buffer: bytearray, settings: wire.Message) -> None:
        self._control = control
        self._buffer = buffer
        self._settings = settings
        self._parent = os.getppid()
        self._children: dict[int, socket.socket] = {}
        """Workers that have not been waited for, by pid, with the socket that their exit code goes to."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # The handler does nothing: it is the wake-up pipe that makes select return when a child dies.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        while os.getppid() == self._parent:
            ready, _, _ = select.select([self._control.fileno(), self._wake_read], [], [], PARENT_POLL_S)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            self._reap()
            if self._control.fileno() in ready:
                chunk = self._control.recv(1 << 16)
                if not chunk:
                    break
                self._buffer += chunk
            while (request := wire.take(self._buffer)) is not None:
                self._answer(request)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _answer(self, request: wire.Message) -> None:
        if request["do"] == "spawn":
            self._spawn()
        elif request["do"] == "kill" and request["pid"] in self._children:
            # _children has only processes not yet waited for, so the pid cannot have been reused.
            os.kill(request["pid"], signal.SIGKILL)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        ending, exit_sender = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for end in (theirs, ending, exit_sender, *self._children.values()):
                end.close()
            self._become_worker(ours)
        ours.close()
        self._children[pid] = ending
        socket.send_fds(self._control, [wire.encode({"pid": pid})], [theirs.fileno(), exit_sender.fileno()])
        theirs.close()
        exit_sender.close()

    def _become_worker(self, connection: socket.socket) -> NoReturn:
        """Runs in the child: release the fork server's resources, then serve until the connection closes."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            serve(connection, self._settings)
            status = 0
        finally:
            # Never unwind into the fork server's stack: this is a different process now.
            os._exit(status)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                # The grader has closed its end if it asked this worker to end.
                with self._children.pop(pid) as ending, contextlib.suppress(ConnectionError):
                    ending.sendall(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    main()
