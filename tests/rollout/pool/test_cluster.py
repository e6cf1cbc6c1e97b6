"""A pool that uses its whole cluster: its size counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rollout.pool.cluster import Machine, Size, placement_of

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
    # No machine has room for a worker with GPUs: the pool waits for one that has.
    assert (size.look(), size.workers) == (False, 1)
    there += [NODE, NODE]
    assert not size.look_again()  # it has only just looked
    assert (size.look(), size.workers) == (True, 6)
    assert "the cluster has room for 6 sampling workers" in caplog.text
    there.pop()
    assert (size.look(), size.workers) == (True, 3)
    assert (fixed.look(), fixed.workers) == (False, 5)


def test_what_a_worker_without_a_place_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards that are free on different machines are of no use to a worker that needs them on one."""
    free = {"a": {"CPU": 64.0}, "b": {"CPU": 8.0, "GPU": 1.0}, "c": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr("rollout.pool.cluster.machines", lambda: [HEAD, NODE, NODE])
    monkeypatch.setattr("rollout.pool.cluster.available_resources_per_node", lambda: free)
    assert Size(5, 1, 1).lacks() is Size(5, 64, 0).lacks() is None
    lacks = "each takes 1 core and 2 cards on one machine, and the cluster has 80 of 192 cores and 2 of 14 cards free: "
    assert (Size(5, 1, 2).lacks() or "").startswith(lacks)


def test_a_slow_start_is_not_taken_for_a_lack_of_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that is being started, from a slow disk, has its cores: nothing is free, and nothing else is needed."""
    asked: list[SimpleNamespace] = []
    monkeypatch.setattr("rollout.pool.cluster.machines", lambda: [NODE])
    monkeypatch.setattr("rollout.pool.cluster.available_resources_per_node", lambda: {"b": {"CPU": 0.0}})
    monkeypatch.setattr("rollout.pool.cluster.worker", SimpleNamespace(global_worker=SimpleNamespace(gcs_client=None)))
    there = SimpleNamespace(pending_resource_requests=asked)
    monkeypatch.setattr("rollout.pool.cluster.get_cluster_resource_state", lambda _: there)
    size = Size(2, 2, 1)
    for bundle in ({}, {"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}):  # what others ask for
        asked.append(SimpleNamespace(count=1, request=SimpleNamespace(resources_bundle=bundle)))
    size.tell(1, 600)
    assert (caplog.text, size.why_no_place()) == ("", "its process did not start in time")
    asked.append(SimpleNamespace(count=1, request=SimpleNamespace(resources_bundle={"CPU": 2.0, "GPU": 1.0})))
    size.tell(1, 600)
    assert (
        "1 of 2 sampling workers wait for a place, at most 600 s (rollout.start_timeout_s): each takes" in caplog.text
    )
    assert size.why_no_place().startswith(
        "it found no place in the cluster in time: each takes 2 cores and 1 card on one"
    )


def test_placement_in_words() -> None:
    addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert placement_of(["a"], addresses) == "1 worker on 1 machine: 1 on 10.0.0.1"
    assert placement_of(["b", "a", "b", None], addresses, cards=2) == (
        "3 workers of 2 cards on 2 machines: 1 on 10.0.0.1, 2 on 10.0.0.2; 1 without a place yet"
    )
    many = [f"node{number % 512}" for number in range(4096)]
    assert placement_of(many, {}) == "4,096 workers on 512 machines, 8 on each"
    assert placement_of(many[:-1], {}) == "4,095 workers on 512 machines, 7 to 8 on each"
