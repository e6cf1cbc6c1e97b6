"""Workers killed, stopped, slowed while they sample, load an adapter, evaluate: the run is the one nobody touched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rl_engine.records import read_metrics
from tests.drills.equality import different
from tests.drills.fork import train
from tests.drills.machines import pool_workers

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
PIECE_S, START_S = 20, 180
SETTINGS = (
    "rollout.placement=ray",
    "rollout.workers=1",
    "rollout.prompts_per_piece=2",
    f"rollout.piece_timeout_s={PIECE_S}",
    f"rollout.start_timeout_s={START_S}",
    "train.steps=10",
    "eval.every=2",
)


def kill(worker: psutil.Process, _: str) -> None:
    worker.kill()


def stop(worker: psutil.Process, _: str) -> None:
    worker.suspend()


def slow(worker: psutil.Process, doing: str) -> None:
    """A tenth of its speed, until it has done what it is at."""
    while is_at(worker, doing):
        worker.suspend()
        time.sleep(0.18)
        worker.resume()
        time.sleep(0.02)


def is_at(worker: psutil.Process, doing: str) -> bool:
    return f"PoolWorker.{doing}" in " ".join(worker.cmdline())


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls the worker when so many steps are recorded, in a phase."""

    inflict: Callable[[psutil.Process, str], None]
    phase: str
    steps: int


def sampled(run: Path, steps: int) -> bool:
    """Whether the step after these has been sampled and learned from, so that what is sampled now is an evaluation."""
    return (run / "rollouts" / f"step{steps + 1:06d}.jsonl.gz").exists()


# Sampling and loading of the step after `steps`; the evaluation after an even step, before it is recorded.
DOING = {"sampling": "generate", "sync": "load_adapter", "evaluation": "generate"}
FAULTS = [
    Fault(slow, "sampling", 1),
    Fault(slow, "evaluation", 1),
    Fault(slow, "sync", 2),
    Fault(kill, "sampling", 3),
    Fault(kill, "evaluation", 3),
    Fault(kill, "sync", 4),
    Fault(stop, "sampling", 5),
    Fault(stop, "evaluation", 5),
    Fault(stop, "sync", 6),
]


def strike(run: Path, faults: list[Fault], over: threading.Event) -> list[str]:
    """Inflict one after the other; what was done."""
    done: list[str] = []
    worker: psutil.Process | None = None
    while len(done) < len(faults) and not over.wait(0.005):
        fault = faults[len(done)]
        if worker is None:
            worker = next(iter(pool_workers()), None)
            continue
        try:
            ready = len(read_metrics(run)) - 1 == fault.steps
            ready &= sampled(run, fault.steps) == (fault.phase == "evaluation")
            if ready and is_at(worker, DOING[fault.phase]):
                start = time.monotonic()
                fault.inflict(worker, DOING[fault.phase])
                done.append(f"{fault.inflict.__name__} in {fault.phase} after step {fault.steps}")
                print(f"{done[-1]}: {time.monotonic() - start:.1f} s", flush=True)
                worker = worker if fault.inflict is slow else None
        except psutil.Error:
            worker = None  # another takes its place
    return done


def test_a_run_whose_workers_are_harassed_is_the_run_nobody_touched(short_path: Path) -> None:
    whole = train(short_path / "w", *SETTINGS)
    assert whole.code == 0, whole.output
    run, over = short_path / "h" / "runs" / "quickstart", threading.Event()
    with ThreadPoolExecutor(1) as thread:
        striking = thread.submit(strike, run, FAULTS, over)
        try:
            harassed = train(short_path / "h", *SETTINGS, timeout_s=1800)
        finally:
            over.set()
        done = striking.result()
    print(harassed.output)
    assert harassed.code == 0, harassed.output
    assert len(done) == len(FAULTS)
    assert read_metrics(run)[-1]["workers/lost"] == sum(fault.inflict is not slow for fault in FAULTS)
    assert different(run, short_path / "w" / "runs" / "quickstart") == []
