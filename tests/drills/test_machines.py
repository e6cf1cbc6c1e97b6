"""Four workers on two machines: a machine is lost or frozen, workers are killed, the run is asked to stop.

The run continues with what is left, and ends like the undisturbed one. The workers' engines are scripted, except once
vLLM.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.records import read_metrics
from tests.drills.bad_engines import workers_with
from tests.drills.equality import different
from tests.drills.fork import as_it_is, train
from tests.drills.machines import Cluster, Machine, cluster_of, pool_workers, possible
from tests.helpers.answering_engine import TOKENS, UNCHECKED, brisk, unhurried
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not possible(), reason="network namespaces can only be made by root"),
]
WORKERS, GROUP, PIECE = 4, 4, 2
SETTINGS = (
    "data.limit=16",
    f"sampling.n={GROUP}",
    "sampling.max_tokens=24",
    "eval.every=0",
    "eval.limit=2",
    "checkpoint.keep=1",
    "rollout.placement=ray",
    f"rollout.workers={WORKERS}",
    f"rollout.prompts_per_piece={PIECE}",
    "rollout.kv_cache_gib=0.1",
    "log.tensorboard=false",
)
# One piece fewer than there are workers, so one of them is idle.
IDLE = (*SETTINGS, "train.steps=20", f"train.problems_per_step={PIECE * (WORKERS - 1)}")
BUSY = (*SETTINGS, "train.steps=8", f"train.problems_per_step={PIECE * WORKERS}")
STRUCK_STEP = 2
KILLS, EVERY, STEPS = 30, 5, 200
# A step takes a hundredth of its usual time, so the times by which the pool judges incidents do too.
HUNDREDTH = """
from rollout.pool import incidents
for name in ("TOGETHER_S", "WINDOW_S", "LONGEST_PAUSE_S"):
    setattr(incidents, name, getattr(incidents, name) / 100)
"""
ENGINE = """
from tests.drills.bad_engines import workers_with
from tests.helpers import answering_engine
workers_with(answering_engine.{})
"""
# The workers' engines: set up in a fork here, and as code on the cluster.
ENGINES: dict[str, tuple[Callable[[], None], str, tuple[str, ...]]] = {
    "unhurried": (partial(workers_with, unhurried), ENGINE.format("unhurried"), UNCHECKED),
    "brisk": (partial(workers_with, brisk), ENGINE.format("brisk"), UNCHECKED),
    "vllm": (as_it_is, "", ()),
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Each machine has room for two workers."""
    with cluster_of(WORKERS // 2, WORKERS // 2) as cluster:
        yield cluster


def undisturbed(cluster: Cluster, engine: str, settings: tuple[str, ...]) -> Path:
    """The same run in a cluster of this machine alone, with one worker."""
    prepare, _, more = ENGINES[engine]
    ended = train(cluster.place / "w", *settings, *more, "rollout.workers=1", settings=(), prepare=prepare)
    assert ended.code == 0, ended.output
    return cluster.place / "w" / "runs" / "quickstart"


def at_step(cluster: Cluster, process: subprocess.Popen[bytes], true: Callable[[], object]) -> None:
    """Wait until the step to be struck is under way, all workers are there, and `true` holds."""

    def now() -> bool:
        assert process.poll() is None, cluster.output("run").read_text()
        return cluster.steps("run") >= STRUCK_STEP - 1 and len(pool_workers()) == WORKERS and bool(true())

    until(now, 900, every_s=0.005)


def told(cluster: Cluster) -> list[str]:
    """What the run has reported about lost workers."""
    text = " ".join(cluster.output("run").read_text().split())
    return re.findall(r"\d+ sampling workers? (?:was|were) lost", text)


def measured(cluster: Cluster, process: subprocess.Popen[bytes], name: str, start: float) -> None:
    """Print how long the run took to report lost workers, and to do two more steps."""
    before = cluster.steps("run")
    until(lambda: told(cluster) or process.poll() is not None, 600)
    print(f"{name}: {told(cluster)} after {time.monotonic() - start:.1f} s", flush=True)
    until(lambda: cluster.steps("run") >= before + 2 or process.poll() is not None, 600)
    print(f"{name}: two steps further after {time.monotonic() - start:.1f} s", flush=True)


def killed(cluster: Cluster) -> None:
    """Kill all processes at once; the system informs the others."""
    cluster.other.signal(signal.SIGKILL)


def switched_off(cluster: Cluster) -> None:
    """Pull the cable first, so that nobody is informed."""
    cluster.head.run("ip", "link", "set", "plug", "down")
    cluster.other.signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("engine", "lose"), [("unhurried", killed), ("unhurried", switched_off), ("vllm", switched_off)]
)
def test_a_machine_is_lost_for_good_while_workers_are_idle(
    cluster: Cluster, engine: str, lose: Callable[[Cluster], None]
) -> None:
    """At least one of its workers is busy, and one worker on either machine is idle."""
    _, code, more = ENGINES[engine]
    whole = undisturbed(cluster, engine, IDLE)
    with cluster.training("run", *IDLE, *more, code=code) as process:
        at_step(cluster, process, lambda: cluster.other.workers("generate"))
        start = time.monotonic()
        lose(cluster)
        measured(cluster, process, f"{engine}, {lose.__name__}", start)
        assert process.wait(1800) == 0, cluster.output("run").read_text()
    last = read_metrics(cluster.run("run"))[-1]
    print({name: value for name, value in last.items() if name.startswith("workers/")}, flush=True)
    assert last["workers/alive"] == WORKERS // 2
    assert different(cluster.run("run"), whole) == []


def test_a_machine_is_frozen_and_wakes_up(cluster: Cluster) -> None:
    """Both of its workers are busy. The machine is counted as lost, and what wakes up there later changes nothing."""
    _, code, more = ENGINES["unhurried"]
    whole = undisturbed(cluster, "unhurried", BUSY)
    with cluster.training("run", *BUSY, *more, code=code) as process:
        at_step(cluster, process, lambda: len(cluster.other.workers("generate")) == 2)
        start = time.monotonic()
        cluster.other.signal(signal.SIGSTOP)
        measured(cluster, process, "frozen", start)
        cluster.other.signal(signal.SIGCONT)
        assert process.wait(1800) == 0, cluster.output("run").read_text()
    print({k: v for k, v in read_metrics(cluster.run("run"))[-1].items() if k.startswith("workers/")}, flush=True)
    assert different(cluster.run("run"), whole) == []


def kill_one(cluster: Cluster, machine: Machine, after_step: int) -> bool:
    """Kill a worker that samples on this machine if there is one, otherwise any worker → whether it was sampling."""
    until(lambda: cluster.steps("run") >= after_step and pool_workers(), 600)
    sampling = machine.workers("generate")
    (sampling or machine.workers() or pool_workers())[0].kill()
    return bool(sampling)


def test_thirty_workers_are_killed_and_the_pool_recovers(cluster: Cluster) -> None:
    _, code, more = ENGINES["brisk"]
    settings = (*BUSY, f"train.steps={STEPS}", "optim.lr=1e-5", "checkpoint.every=50", *more)
    whole = undisturbed(cluster, "brisk", settings)
    sampling = 0
    with cluster.training("run", *settings, code=code + HUNDREDTH) as process:
        start = time.monotonic()
        for kill in range(KILLS):
            sampling += kill_one(cluster, (cluster.head, cluster.other)[kill % 2], after_step=EVERY * (kill + 1))
        last_kill = time.monotonic()
        until(lambda: len(pool_workers()) == WORKERS or process.poll() is not None, 600)
        print(f"the pool had its size again {time.monotonic() - last_kill:.1f} s after the last kill", flush=True)
        assert process.wait(1800) == 0, cluster.output("run").read_text()
        print(f"{STEPS} steps with {KILLS} workers killed: {time.monotonic() - start:.0f} s", flush=True)
    lost, asked = sampling * PIECE * GROUP * TOKENS, STEPS * PIECE * WORKERS * GROUP * TOKENS
    print(f"{sampling} of them sampled: at most {lost} tokens of {asked:,} were sampled again", flush=True)
    last = read_metrics(cluster.run("run"))[-1]
    assert (last["workers/lost"], last["workers/alive"]) == (KILLS, WORKERS)
    assert different(cluster.run("run"), whole) == []


def test_a_run_is_asked_to_stop_while_its_workers_sample(cluster: Cluster) -> None:
    _, code, more = ENGINES["unhurried"]
    whole = undisturbed(cluster, "unhurried", BUSY)
    with cluster.training("run", *BUSY, *more, code=code) as process:
        at_step(cluster, process, lambda: len(pool_workers("generate")) == WORKERS)
        start = time.monotonic()
        psutil.Process(process.pid).children()[0].terminate()
        assert process.wait(60) == 128 + signal.SIGTERM, cluster.output("run").read_text()
        gone = time.monotonic() - start
    until(lambda: not pool_workers(), 10)
    print(f"SIGTERM while {WORKERS} workers sample: gone after {gone:.1f} s, workers {time.monotonic() - start:.1f} s")
    assert gone < 10
    found = Checkpoints(cluster.run("run") / "checkpoints", keep=1).newest()
    assert found is not None
    assert found[0].step == cluster.steps("run") >= STRUCK_STEP - 1
    with cluster.training("run", *BUSY, *more, "--resume", code=code) as process:
        assert process.wait(1800) == 0, cluster.output("run").read_text()
    assert different(cluster.run("run"), whole) == []
