"""Groups of configurations that cannot share → one process per group, one after another.

A process that ends returns all of its memory. Libraries also keep global state for a model and a sampler, which rules
out a second, different pair in the same process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from rewards.command import print_error
from rl_engine.config.file import ConfigError
from rl_engine.plan.sharing import Group
from rollout.stopping import Stopped, StopRequest, end_with_parent


def train_sequentially(
    groups: Sequence[Group], files: dict[str, str], at_once: int | None, arguments: Sequence[str], stop: StopRequest
) -> int:
    """Train group by group, and return the exit code: 1 if any run failed.

    Args:
        groups: from `groups_of`, more than one.
        files: name of each run → name of its configuration.
        at_once: runs of a group in progress at a time; None leaves it to each process.
        arguments: command-line arguments passed to every process.
        stop: forwarded to the running process, which saves and exits.
    """
    failed = False
    for group in groups:
        command = [sys.executable, "-m", "rl_engine.train"]
        for cell in group.cells:
            command += ["--config", files[cell.name]]
        if group.alone is None and (at_once or len(group.cells) == 1):
            command += ["--together", str(min(at_once or 1, len(group.cells)))]
        code = _ended([*command, *arguments], stop)
        failed |= code != 0
        if stop.asked:
            return stop.exit_code
        if code < 0:  # it could not say so itself
            names = ", ".join(cell.name for cell in group.cells)
            short = ", as a system short of memory does" if code == -signal.SIGKILL else ""
            print_error(f"{names}: ended by {signal.Signals(-code).name}{short}; --resume continues what is saved", 1)
    return int(failed)


def check_ranks(groups: Sequence[Group]) -> None:
    """Raises `ConfigError` for several groups under a launcher, whose processes can rendezvous for one group only."""
    if len(groups) > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        why = next(line for group in groups for line in group.apart)
        raise ConfigError(
            f"{why}. Under a launcher all runs of one command must share a process: start this one with a command of "
            "its own"
        )


def _ended(command: Sequence[str], stop: StopRequest) -> int:
    process = subprocess.Popen(command, preexec_fn=partial(end_with_parent, os.getpid()))
    try:
        with stop.raised():
            return process.wait()
    except Stopped:
        process.send_signal(stop.signum or signal.SIGTERM)
        return process.wait()
