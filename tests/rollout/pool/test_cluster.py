"""A pool as large as its cluster: room counted by hand, and a machine that really comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.pool.cluster import Machine, Size, placement_of
from tests.helpers.pools import SAMPLING, PoolMaker, expected, log_of, prompt_of, seeds, until

HEAD = Machine(id="a", address="10.0.0.1", cpus=64, gpus=0, store=0)
NODE = Machine(id="b", address="10.0.0.2", cpus=64, gpus=7, store=0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"),
    [(1, 0, 64), (3, 0, 21), (1, 1, 7), (1, 2, 3), (1, 8, 0), (16, 1, 4), (65, 0, 0)],
)
def test_a_worker_is_on_one_machine_whole(cpus: int, gpus: int, workers: int) -> None:
    assert NODE.workers(cpus, gpus) == workers


def test_the_size_is_what_the_machines_have_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = [HEAD]
    monkeypatch.setattr("rollout.pool.cluster.machines", lambda: there)
    size, fixed = Size(None, 1, 2), Size(5, 1, 2)
    # Nothing has room for a worker with cards: one waits for a machine that has.
    assert (size.look(), size.workers) == (False, 1)
    there += [NODE, NODE]
    assert not size.look_again()  # it has just looked
    assert (size.look(), size.workers) == (True, 6)
    assert "the cluster has room for 6 sampling workers" in caplog.text
    there.pop()
    assert (size.look(), size.workers) == (True, 3)
    assert (fixed.look(), fixed.workers) == (False, 5)


def test_placement_in_words() -> None:
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert placement_of(["a"], addresses) == "1 worker on 1 machine: 1 on 10.0.0.1"
    assert placement_of(["b", "a", "b", None], addresses, cards=2) == (
        "3 workers of 2 cards on 2 machines: 1 on 10.0.0.1, 2 on 10.0.0.2; 1 without a place yet"
    )
    many = [f"node{number % 512}" for number in range(4096)]
    assert placement_of(many, {}) == "4,096 workers on 512 machines, 8 on each"
    assert placement_of(many[:-1], {}) == "4,095 workers on 512 machines, 7 to 8 on each"


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_machine_that_comes_is_used_and_a_gone_one_not_missed(
    ray_cluster: Path,
    make_pool: PoolMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two cores a worker: the machine that is there has four, and the one that comes has three."""
    import ray
    from ray._private.node import Node  # as ray.cluster_utils does, for a head of its own
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
    # A worker that Ray calls unavailable first, and another that it still starts there, are lost twice.
    until(lambda: pool.lost > 0 and pool._size.workers == 2, 120)
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    until(lambda: pool.alive == len(pool._workers) == 2)
