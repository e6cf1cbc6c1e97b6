"""The training command in a fork of a process with the libraries already imported, which takes ten seconds."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.drills.loaded"])


def as_it_is() -> None: ...


def become(
    directory: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    output: Path,
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
    prepare()
    from rl_engine.train.__main__ import app

    app(["--config", "quickstart.yaml", *arguments])


def train(
    directory: Path,
    *arguments: str,
    environment: Mapping[str, str],
    timeout_s: float = 300,
    prepare: Callable[[], None] = as_it_is,
) -> tuple[int, str]:
    """Run `python -m rl_engine.train --config quickstart.yaml …` in a directory; returns exit code and output.

    `prepare` is called first in the fork, to patch the program under test.
    """
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output.txt"
        process = CONTEXT.Process(target=become, args=(directory, arguments, environment, output, prepare))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"it was still there after {timeout_s:.0f} s")
        return process.exitcode, output.read_text()
