"""Machines that join and leave the cluster while a pool has workers on them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout.work_items import PromptBatch
from tests.helpers.pools import SAMPLING, PoolMaker, expected, log_of, prompt_of, seeds
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is garbage-collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_machine_that_goes_takes_all_its_workers_at_once(
    make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says which machines are alive; the rest of the pool continues elsewhere."""
    from rollout.pool.cluster import machines

    pool = make_pool(workers=3, cpus_per_worker=0)
    until(lambda: pool.alive == 3)
    alive = machines()
    for worker in pool._workers:
        worker.find()
    gone, also, here = pool._workers
    gone.node = also.node = "gone"
    monkeypatch.setattr("rollout.pool.ray_pool.machines", lambda: alive)
    os.kill(gone.pid, signal.SIGKILL)
    prompts = [prompt_of(number) for number in range(8)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    until(lambda: pool.lost == 2 and pool.alive == 3)
    assert here in pool._workers
    assert also not in pool._workers
    (incident,) = pool._incidents._recent
    assert (incident.node, incident.workers) == ("gone", 2)


@contextlib.contextmanager
def another_machine(cpus: int) -> Iterator[Any]:
    """A second machine of the session's cluster, as far as Ray can tell: its own raylet."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from rollout.pool.cluster import machines

    address = ray.get_runtime_context().gcs_address
    parameters = RayParams(gcs_address=address, num_cpus=cpus, object_store_memory=2**27, node_ip_address="127.0.0.1")
    parameters.update_if_absent(min_worker_port=0, max_worker_port=0, node_manager_port=0, include_log_monitor=False)
    node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
    try:
        yield node
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        until(lambda: len(machines()) == 1)


def test_the_machine_of_two_of_three_workers_dies(make_pool: PoolMaker, tmp_path: Path) -> None:
    """This machine has room for one of the three workers."""
    import ray

    with another_machine(cpus=6) as machine:
        pool = make_pool(workers=3, cpus_per_worker=3, max_restarts=0)
        until(lambda: pool.alive == 3)
        (here,) = [one for one in pool._workers if one.find() == ray.get_runtime_context().get_node_id()]
        prompts = [prompt_of(number, "slow") for number in range(6)]
        request = pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
        until(lambda: (tmp_path / "log").exists())
        machine.kill_raylet(check_alive=False)
        assert pool.collect(request, 60) == expected(prompts)
    until(lambda: pool.lost == 2)
    assert [worker for worker in pool._workers if worker.ready] == [here]
    (incident,) = pool._incidents._recent
    assert incident.workers == 2


def test_a_machine_that_comes_is_used_and_a_gone_one_not_missed(
    ray_cluster: Path,
    make_pool: PoolMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two cores per worker: the first machine has four cores, and the second one three."""
    import ray
    from ray._private.node import Node  # as in ray.cluster_utils, but for our own head node
    from ray._private.parameter import RayParams

    monkeypatch.setattr("rollout.pool.cluster.LOOK_EVERY_S", 0.5)
    monkeypatch.setattr("rollout.pool.ray_pool.PING_EVERY_S", 0.5)
    pool = make_pool(workers=None, cpus_per_worker=2)
    until(lambda: pool.alive == 2, 120)
    assert pool.where() == "2 workers on 1 machine: 2 on 127.0.0.1"
    machine = Node(
        RayParams(
            gcs_address=ray.get_runtime_context().gcs_address,
            node_ip_address="127.0.0.1",
            num_cpus=3,
            object_store_memory=100 * 2**20,
            min_worker_port=0,
            max_worker_port=0,
            temp_dir=str(ray_cluster),
        ),
        head=False,
        shutdown_at_exit=False,
        spawn_reaper=False,
    )
    try:
        until(lambda: pool.alive == 3, 120)
        assert "the cluster has room for 3 sampling workers" in caplog.text
        assert pool.where().startswith("3 workers on 2 machines")
        prompts = [prompt_of(number, "slow") for number in range(6)]
        assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
        assert len({pid for pid, _, _ in log_of(tmp_path)}) == 3
    finally:
        machine.kill_all_processes(check_alive=False, allow_graceful=False)
    # A worker that Ray first calls unavailable, and another that Ray is still starting there, are lost twice.
    until(lambda: pool.lost > 0 and pool._size.workers == 2, 120)
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    until(lambda: pool.alive == len(pool._workers) == 2)
