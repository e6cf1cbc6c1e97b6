"""Commands of `rl_engine.api` in a fork with the libraries already imported: `start` replaces the one in `process`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rl_engine.api.process import environment
from tests.helpers import warm_graders
from tests.helpers.forked import fork

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def become(
    directory: Path,
    module: str,
    arguments: Sequence[str],
    variables: dict[str, str],
    launched: Mapping[str, str],
    log: Path,
    graders: str,
) -> None:
    """Run in the fork: turn it into the command."""
    import importlib

    os.setsid()
    os.chdir(directory)
    os.environ.update(variables)
    for name in LAUNCHED:
        os.environ.pop(name, None)  # set by a learner in the tests' process
    os.environ.update(launched)
    sys.path[:0] = [str(directory), *variables["PYTHONPATH"].split(os.pathsep)]
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warm_graders.use(graders)
    importlib.import_module(f"{module}.__main__").app(list(arguments))


class Forked:
    """The part of `subprocess.Popen`'s interface that is used."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def start(module: str, arguments: Sequence[str], log: Path, launched: Mapping[str, str] | None = None) -> Any:
    """`launched` are the variables of a launcher, if it is one of several ranks."""
    log.touch()
    given = (Path.cwd(), module, tuple(arguments), environment(), launched or {}, log, warm_graders.warm_at())
    process = fork(become, *given)
    process.start()
    return Forked(process)
