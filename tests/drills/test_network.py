"""A cluster of two machines, the learner on one and workers on the other: the same run as on one machine, even when the
link breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_engine.run.records import read_metrics
from tests.drills.equality import different
from tests.drills.fork import train
from tests.drills.machines import HEAD, Cluster, cluster_of, pool_workers, possible, pulled
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not possible(), reason="network namespaces can only be made by root"),
]
# With DRILL_WHOLE=1, the quickstart as it ships.
SMALL = (
    "data.limit=512",
    "train.steps=4",
    "train.problems_per_step=16",
    "eval.every=2",
    "eval.limit=16",
    "checkpoint.every=2",
)
SETTINGS = (
    *(() if os.environ.get("DRILL_WHOLE") else SMALL),
    "rollout.placement=ray",
    "rollout.workers=1",
    "rollout.kv_cache_gib=0.1",
    "log.tensorboard=false",
)
# The code of a pool in the cluster.
POOL = f"""
from rollout.engine import EngineSettings, PoolSettings
from rollout.pool.ray_pool import RayPool
engine = EngineSettings(model="none", dtype="float32", max_model_len=8, lora_rank=1)
limits = {{"prompts_per_piece": 1, "start_timeout_s": 60, "piece_timeout_s": 60, "max_restarts": 0}}
RayPool(engine, PoolSettings(workers=1, address="{HEAD}:6379", cpus_per_worker=1, **limits))
"""
JOIN = ("start", f"--address={HEAD}:6379", "--num-cpus=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head has no cores for workers, so all of them are on the other machine."""
    with cluster_of(0, 1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local(cluster: Cluster) -> Path:
    """The same run on one machine, in its own cluster."""
    ended = train(cluster.place / "l", *SETTINGS, settings=(), timeout_s=3000)
    assert ended.code == 0, ended.output
    return cluster.place / "l" / "runs" / "quickstart"


def test_two_machines_give_what_one_gives(cluster: Cluster, local: Path) -> None:
    with cluster.training("joined", *SETTINGS) as process:
        until(lambda: pool_workers("generate") or process.poll() is not None, 600)
        there = cluster.other.workers()
        assert len(there) == len(pool_workers()) == 1, cluster.output("joined").read_text()
        assert cluster.head.workers() == []
        assert process.wait(3000) == 0, cluster.output("joined").read_text()
    assert read_metrics(cluster.run("joined"))[-1]["workers/lost"] == 0
    assert different(cluster.run("joined"), local) == []


def test_a_process_without_the_token_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    environment = {**cluster.other.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    command = cluster.other.command(sys.executable, "-c", POOL)
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert asked.returncode != 0
    refused = "and the Ray cluster there did not accept this process"
    assert f"PoolError: rollout.address is {HEAD}:6379, {refused}" in asked.stderr
    assert "InvalidAuthToken" in asked.stderr  # Ray's own message


@pytest.mark.parametrize("cut_s", [30])
def test_a_link_that_is_cut_while_sampling(cluster: Cluster, local: Path, cut_s: int) -> None:
    """No prompt is lost, and the run continues when the link is back."""
    name = f"cut{cut_s}"
    with cluster.training(name, *SETTINGS) as process:
        until(lambda: (cluster.steps(name) >= 1 and pool_workers("generate")) or process.poll() is not None, 600)
        with pulled(cluster.head):
            before = cluster.steps(name)
            time.sleep(cut_s)
            assert process.poll() is None, cluster.output(name).read_text()
            assert cluster.steps(name) <= before + 1  # only what had been sampled already
        start = time.monotonic()
        until(lambda: cluster.steps(name) > before + 1 or process.poll() is not None, 600)
        print(f"link cut for {cut_s} s in step {before + 1}: the next was done {time.monotonic() - start:.1f} s later")
        assert process.wait(3000) == 0, cluster.output(name).read_text()
    print(cluster.output(name).read_text())
    print("workers lost:", read_metrics(cluster.run(name))[-1]["workers/lost"], flush=True)
    assert different(cluster.run(name), local) == []


def test_a_machine_that_is_lost_and_comes_back(cluster: Cluster, local: Path) -> None:
    """As after a longer cut, when the cluster has declared the machine dead: someone else must start Ray there
    again."""
    with cluster.training("lost", *SETTINGS) as process:
        until(lambda: (cluster.steps("lost") >= 1 and pool_workers("generate")) or process.poll() is not None, 900)
        cluster.other.ray("stop", "--force")
        before = cluster.steps("lost")
        assert cluster.other.workers() == []
        time.sleep(10)
        assert process.poll() is None, cluster.output("lost").read_text()
        cluster.other.ray(*JOIN)
        assert process.wait(3000) == 0, cluster.output("lost").read_text()
    print(cluster.output("lost").read_text(), flush=True)
    assert before < cluster.steps("lost")
    # Two if another worker was placed on the machine before the cluster declared it dead.
    assert read_metrics(cluster.run("lost"))[-1]["workers/lost"] in (1, 2)
    assert different(cluster.run("lost"), local) == []
