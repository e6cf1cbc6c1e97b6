"""One of our commands → a child process: streamed output, errors as exceptions, no orphans."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datafiles.text import new_output
from rollout.stopping import GRACE_S, kill_session

ERROR = "error: "
"""Prefix of the line in which a command reports why it failed."""
POLL_S = 0.2


class CommandError(RuntimeError):
    """A command that failed. The message is its error line: what is wrong, and what to do about it."""

    def __init__(self, message: str, code: int, output: str) -> None:
        super().__init__(message)
        self.code = code
        """Exit code: 2 for a mistake you can correct, such as a path; 128 and up, or negative, for a signal; or 1."""
        self.output = output
        """Everything the command printed."""


@dataclass
class Child:
    """A running command."""

    module: str
    popen: subprocess.Popen[bytes]
    log: Path
    show: bool
    """Print its output as it comes."""
    hide: str | None
    """Lines that contain this are not printed."""
    _shown: int = field(default=0, init=False)  # bytes of the log

    def is_at_work(self) -> bool:
        """Wait for at most `POLL_S`, print the command's new output, and return whether it is still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(POLL_S)
        at_work = self.popen.poll() is None
        self._pass_on(at_work)
        return at_work

    def check(self) -> None:
        """Raises `CommandError` if the command ended with a nonzero exit code."""
        code, output = self.popen.wait(), self.log.read_text(errors="replace", encoding="utf-8")
        if code:
            raise CommandError(_message(self.module, code, output), code, output)

    def stop(self) -> None:
        """Ask the command to save and exit, and wait for it; kill it on a second interrupt or after `GRACE_S`."""
        try:
            if self.popen.poll() is None:
                self.popen.terminate()
                self.popen.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.popen.poll() is None:
                kill_session(self.popen.pid)
                self.popen.wait()
            self._pass_on(at_work=False)

    def _pass_on(self, at_work: bool) -> None:
        """Print new output; while the command is running, only complete lines."""
        if not self.show:
            return
        new = new_output(self.log, self._shown, ended=not at_work)
        self._shown += len(new)
        # Look up `sys.stdout` anew each time: in a notebook it belongs to the current cell.
        for line in new.decode(errors="replace").splitlines(keepends=True):
            if self.hide is None or self.hide not in line:
                sys.stdout.write(line)
        sys.stdout.flush()


@contextlib.contextmanager
def running(module: str, arguments: Sequence[str], *, show: bool, hide: str | None = None) -> Iterator[Child]:
    """Run `python -m MODULE ARGUMENTS…` inside the block; leaving the block stops it if it is still running. `show` and
    `hide`: see `Child`."""
    with tempfile.TemporaryDirectory(prefix="rl_engine-") as place:
        log = Path(place) / "output.txt"
        child = Child(module, start(module, arguments, log), log, show, hide)
        try:
            yield child
        finally:
            child.stop()


def start(module: str, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the process, with its output in the log, in a new session: Ctrl-C in a terminal then reaches only this
    process, which asks the child to stop."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "rl_engine.api.child", str(os.getpid()), module, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def environment() -> dict[str, str]:
    """This process's environment with its import path in PYTHONPATH, so that the child can import what this process
    can, such as a module of reward functions next to a script."""
    own = (f"{sys.prefix}{os.sep}", f"{sys.base_prefix}{os.sep}")
    places = [path or str(Path.cwd()) for path in sys.path]
    kept = dict.fromkeys(path for path in places if not path.startswith(own))
    plain = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}  # the log is no terminal
    return {**plain, "PYTHONPATH": os.pathsep.join(kept)}


def _message(module: str, code: int, output: str) -> str:
    """The command's own error line and what follows it, or else how it ended and the last line of its output."""
    _, found, message = f"\n{output}".rpartition(f"\n{ERROR}")
    if found:
        return message.strip()
    last = (output.strip().splitlines() or ["it said nothing"])[-1].strip()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"python -m {module} {how}: {last}"
