"""The training command in a fork of a process with the libraries already imported, which takes ten seconds."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers import warm_graders

LOADED = "tests.drills.loaded"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([LOADED])
_starting = threading.Lock()


@functools.cache
def _start() -> None:
    """Start the process that is forked. It imports `LOADED` from its working directory, and nobody hears of it if that
    fails: every fork would load everything itself."""
    with contextlib.chdir(Path(__file__).parents[2]):
        forkserver.ensure_running()


def fork(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that calls `target`, not started yet."""
    with _starting:
        _start()
    return CONTEXT.Process(target=_loaded, args=(target, *args))


def _loaded(target: Callable[..., None], *args: Any) -> None:
    """Run in the fork."""
    assert LOADED in sys.modules
    # An engine that ends makes all libraries' objects subject to garbage collection again, and scans them three times.
    gc.unfreeze = as_it_is
    target(*args)


def as_it_is() -> None: ...


def become(
    directory: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    output: Path,
    graders: str,
    prepare: Callable[[], None],
) -> None:
    """Run in the fork: turn it into the training command."""
    os.chdir(directory)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)  # set by a learner in the tests' process
    os.environ.update(environment)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warm_graders.use(graders)
    prepare()
    from rl_engine.train.__main__ import app

    app(["--config", "quickstart.yaml", *arguments])


def train(
    directory: Path,
    *arguments: str,
    environment: Mapping[str, str],
    prepare: Callable[[], None] = as_it_is,
) -> tuple[int, str]:
    """Run `python -m rl_engine.train --config quickstart.yaml …` in a directory; returns exit code and output.

    `prepare` is called first in the fork, to patch the program under test.
    """
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output.txt"
        process = fork(become, directory, arguments, environment, output, warm_graders.warm_at(), prepare)
        process.start()
        try:
            process.join()
        finally:
            process.kill()  # if it hangs, and pytest's time limit has ended the test
        assert process.exitcode is not None
        return process.exitcode, output.read_text()
