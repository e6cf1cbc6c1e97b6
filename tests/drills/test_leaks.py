"""Five hundred steps with a worker killed every twenty: nothing grows, and nothing is left when the run has ended.

The loop, the learner, the pool and its actors are the real ones. The engine inside the actors is not, because vLLM
would have to be started 25 times.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from rl_engine.run.records import read_metrics
from tests.drills.bad_engines import workers_with
from tests.drills.fork import MARK, train
from tests.drills.machines import pool_workers
from tests.helpers.answering_engine import UNCHECKED, AnsweringEngine

pytestmark = [pytest.mark.drill, pytest.mark.timeout(7200)]
STEPS, EVERY = int(os.environ.get("DRILL_STEPS", "500")), 20
SETTINGS = (
    "rollout.placement=ray",
    "rollout.workers=2",
    f"train.steps={STEPS}",
    "train.problems_per_step=1",
    "sampling.n=2",
    "eval.every=0",
    "eval.limit=2",
    "checkpoint.every=50",
    "optim.lr=1e-5",
    *UNCHECKED,
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run holds at one step."""

    step: int
    driver_mib: float
    """Memory that it shares with no other process."""
    driver_descriptors: int
    driver_threads: int
    processes: int
    """The processes of the driver, the grader, Ray and the workers."""
    services_mib: float
    """Memory of all of these except driver and workers."""
    shared_memory_mib: float
    """The size of Ray's object store, as far as it was ever used."""
    temporary_files: int


# How much each may grow over the second half of the run, by a fitted line. Ray keeps the log files of a worker that has
# ended.
GROWTH = {
    "driver_mib": 10,
    "driver_descriptors": 4,
    "driver_threads": 4,
    "processes": 2,
    "services_mib": 20,
    "shared_memory_mib": 4,
    "temporary_files": 8 * STEPS / 2 / EVERY,
}


def driver(place: Path) -> psutil.Process:
    """The run: the oldest process with this working directory. Raises `psutil.NoSuchProcess` if it has ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(place) and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    if not found:
        raise psutil.NoSuchProcess(-1, msg=f"nothing runs in {place}")
    return min(found, key=lambda process: (process.create_time(), process.pid))


def figures(run: psutil.Process, place: Path, step: int) -> Figures:
    family = run.children(recursive=True)
    services = shared = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            if "PoolWorker" in " ".join(process.cmdline()):
                continue
            services += process.memory_full_info().uss
            if process.name() == "raylet":
                shared += sum(mapped.rss for mapped in process.memory_maps() if mapped.path.startswith("/dev/shm"))
    return Figures(
        step=step,
        driver_mib=run.memory_full_info().uss / 2**20,
        driver_descriptors=run.num_fds(),
        driver_threads=run.num_threads(),
        processes=len(family) + 1,
        services_mib=services / 2**20,
        shared_memory_mib=shared / 2**20,
        temporary_files=sum(path.is_file() for path in files_below(place / "tmp")),
    )


def files_below(directory: Path) -> Iterator[Path]:
    for root, _, names in os.walk(directory):
        yield from (Path(root) / name for name in names)


def watch(place: Path, over: threading.Event) -> list[Figures]:
    """Figures every so many steps, just before a worker is killed: by then the one killed before has been replaced."""
    found: list[Figures] = []
    run = place / "runs" / "quickstart"
    while not over.wait(0.5):
        step = len(read_metrics(run)) - 1
        if step < EVERY * (len(found) + 1):
            continue
        deadline = time.monotonic() + 60
        while len(pool_workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        with contextlib.suppress(psutil.NoSuchProcess):  # the run has just ended
            found.append(figures(driver(place), place, step))
            print({name: round(value, 1) for name, value in asdict(found[-1]).items()}, flush=True)
            if step < STEPS:  # the next worker to start removes what a killed one leaves
                pool_workers()[0].kill()
    return found


def test_nothing_grows_and_nothing_is_left(short_path: Path) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch, short_path, over)
        start = time.monotonic()
        try:
            ended = train(short_path, *SETTINGS, prepare=partial(workers_with, AnsweringEngine), timeout_s=7200)
        finally:
            over.set()
        found = watching.result()
    assert ended.code == 0, ended.output
    last = read_metrics(short_path / "runs" / "quickstart")[-1]
    print(f"{STEPS} steps in {time.monotonic() - start:.0f} s, {last['workers/lost']:.0f} workers lost", flush=True)
    assert last["adapter/version"] == last["step"] == STEPS
    assert last["workers/lost"] >= STEPS / EVERY - 2
    half = [each for each in found if each.step >= STEPS / 2]
    steps = [each.step for each in half]
    grown = {name: np.polyfit(steps, [getattr(f, name) for f in half], 1)[0] * (STEPS / 2) for name in GROWTH}
    print({name: round(float(value), 2) for name, value in grown.items()}, flush=True)
    assert [(name, value) for name, value in grown.items() if value > GROWTH[name]] == []
    assert list((short_path / "tmp").iterdir()) == []
