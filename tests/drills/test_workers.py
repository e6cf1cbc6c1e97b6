"""Workers are killed, stopped and slowed while they sample, load an adapter or evaluate: the run equals the undisturbed
one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from rl_engine.run.records import read_metrics
from tests.drills.bad_engines import workers_with
from tests.drills.equality import different
from tests.drills.fork import as_it_is, train
from tests.drills.machines import pool_workers
from tests.helpers.answering_engine import UNCHECKED, unhurried

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
SETTINGS = (
    "rollout.placement=ray",
    "rollout.workers=1",
    "rollout.prompts_per_piece=2",
    "rollout.piece_timeout_s=20",
    "train.steps=20",
    "eval.every=2",
)
# How the pool gets its workers, and the settings that differ. A worker that is stopped while it loads an adapter is
# waited for as long as one that starts.
ENGINES: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "scripted": (partial(workers_with, unhurried), ("rollout.start_timeout_s=60", *UNCHECKED)),
    "vllm": (as_it_is, ("rollout.start_timeout_s=120",)),
}


def kill(worker: psutil.Process, _: str) -> None:
    worker.kill()


def stop(worker: psutil.Process, _: str) -> None:
    worker.suspend()


def slow(worker: psutil.Process, doing: str) -> None:
    """Slow the worker to a tenth of its speed until it has finished what it is doing."""
    while is_at(worker, doing):
        worker.suspend()
        time.sleep(0.18)
        worker.resume()
        time.sleep(0.02)


def is_at(worker: psutil.Process, doing: str) -> bool:
    return f"PoolWorker.{doing}" in " ".join(worker.cmdline())


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a worker in a phase, once `steps` steps are recorded."""

    inflict: Callable[[psutil.Process, str], None]
    phase: str
    steps: int


def in_phase(run: Path, fault: Fault) -> bool:
    """Whether the current step is due for the fault, and what is being sampled belongs to its phase."""
    steps = len(read_metrics(run)) - 1
    if fault.phase == "sync":
        return steps >= fault.steps
    # Then the next step has been sampled and learned from, and the evaluation after every second step is being sampled.
    sampled = (run / "rollouts" / f"step{steps + 1:06d}.jsonl.gz").exists()
    evaluation = fault.phase == "evaluation"
    return steps >= fault.steps and sampled == evaluation and not (evaluation and steps % 2 == 0)


# A load takes milliseconds and may be missed; then the next one is struck.
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
    """Inflict the faults one after the other → what was done."""
    done: list[str] = []
    worker: psutil.Process | None = None
    while len(done) < len(faults) and not over.wait(0.002):
        fault = faults[len(done)]
        if worker is None:
            worker = next(iter(pool_workers()), None)
            continue
        try:
            if is_at(worker, DOING[fault.phase]) and in_phase(run, fault):
                start = time.monotonic()
                fault.inflict(worker, DOING[fault.phase])
                done.append(f"{fault.inflict.__name__} in {fault.phase}, due after step {fault.steps}")
                print(f"{done[-1]}: {time.monotonic() - start:.1f} s", flush=True)
                worker = worker if fault.inflict is slow else None
        except psutil.Error:
            worker = None  # another worker takes its place
    return done


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_with_harassed_workers_is_the_run_untouched(short_path: Path, engine: str) -> None:
    prepare, settings = ENGINES[engine]
    whole = train(short_path / "w", *SETTINGS, *settings, prepare=prepare)
    assert whole.code == 0, whole.output
    run, over = short_path / "h" / "runs" / "quickstart", threading.Event()
    with ThreadPoolExecutor(1) as thread:
        striking = thread.submit(strike, run, FAULTS, over)
        try:
            harassed = train(short_path / "h", *SETTINGS, *settings, prepare=prepare, timeout_s=3000)
        finally:
            over.set()
        done = striking.result()
    print(harassed.output)
    assert harassed.code == 0, harassed.output
    assert len(done) == len(FAULTS)
    assert read_metrics(run)[-1]["workers/lost"] == sum(fault.inflict is not slow for fault in FAULTS)
    assert different(run, short_path / "w" / "runs" / "quickstart") == []
