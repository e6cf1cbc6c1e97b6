"""The process that runs are forked from, an uninterrupted run, and checks of what is left behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.drills.fork import MARK, Ended, train
from tests.drills.machines import network_of


@dataclass(frozen=True, slots=True)
class Reference:
    """An uninterrupted run."""

    run: Path
    ended: Ended


@pytest.fixture(scope="session", autouse=True)
def forkserver() -> Iterator[None]:
    """Everything started from here carries a mark in its environment, by which strays are found."""
    os.environ.update({MARK: str(os.getpid()), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"})
    # Every run compiles one small function at its start, which takes a tenth of these short runs.
    os.environ.update({"TORCH_CPP_LOG_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1"})
    # For a pool's workers, which Ray starts.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    yield
    del os.environ[MARK]


def strays() -> list[psutil.Process]:
    """Processes left over from ended runs. Those on a drill's own machine disappear with that machine."""
    found = []
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            if process.pid in ours or process.environ().get(MARK) != str(os.getpid()):
                continue
            if network_of(process.pid) != network_of(os.getpid()):
                continue
            line = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        if "multiprocessing." not in line and "warm_graders" not in line:
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process and no shared memory outlives a drill by more than ten seconds."""
    shared = shared_memory()
    yield
    deadline = time.monotonic() + 10
    # Another program of this machine may have shared memory of its own for a moment.
    while (strays() or not shared_memory() <= shared) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = []
    for process in strays():
        with suppress(psutil.NoSuchProcess):
            left.append(process.cmdline())
            process.kill()  # the next drill starts without it
    assert left == []
    assert shared_memory() <= shared


def shared_memory() -> set[Path]:
    """Without semaphores: a killed run has not removed vLLM's lock of 32 bytes. Multiprocessing's tracker, which all
    runs here share, removes it after the last of them."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short name: the paths of Ray's sockets below it may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    place = tmp_path_factory.mktemp("whole")
    ended = train(place)
    assert ended.code == 0, ended.output
    return Reference(place / "runs" / "quickstart", ended)
