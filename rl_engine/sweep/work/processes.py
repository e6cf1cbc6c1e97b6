"""A command line → a process that writes to a log, exits when asked to, and does not outlive the sweep."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evals.launch.limits import usable_cores
from rollout.stopping import GRACE_S, end_with_parent, kill_session


@dataclass
class Process:
    popen: subprocess.Popen[bytes]
    cards: str | None = None
    """Value of its `CUDA_VISIBLE_DEVICES`; None if it sees the same cards as the sweep."""
    asked_to_stop: float | None = None
    """When it was asked to stop, in monotonic seconds."""

    @property
    def returncode(self) -> int | None:
        """None while it is running. A process that was asked to stop and does not is killed after `GRACE_S`."""
        code = self.popen.poll()
        if code is None and self.asked_to_stop is not None:
            self.stop()
        return code

    def stop(self) -> None:
        """Ask it to save and exit; called again after `GRACE_S`, kill it and everything it started."""
        now = time.monotonic()
        if self.asked_to_stop is None:
            self.asked_to_stop = now
            self.popen.terminate()
        elif now > self.asked_to_stop + GRACE_S:
            self.kill()

    def kill(self) -> None:
        kill_session(self.popen.pid)


def start_process(line: Sequence[str], log: Path, jobs: int, lock: int, cards: str | None) -> Process:
    """Start a process. `lock`: a descriptor that it keeps open, so that the sweep's lock is held as long as it lives.
    `cards`: see `Process`."""
    shown = {} if cards is None else {"CUDA_VISIBLE_DEVICES": cards}
    threads = str(max(1, usable_cores() // jobs))
    with log.open("ab") as file:
        return Process(
            subprocess.Popen(
                line,
                env={"OMP_NUM_THREADS": threads, **os.environ, **shown},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches only the sweep, which asks its runs to stop
                pass_fds=(lock,),
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: the sweep has no threads
            ),
            cards,
        )
