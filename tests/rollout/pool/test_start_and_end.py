"""A pool starts or says why not, is inaccessible to others, and leaves nothing behind when it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rollout.engine import PoolError
from rollout.pool.scratch import ScratchDirectory
from rollout.work_items import PromptBatch, Request
from tests.helpers.pools import SAMPLING, PoolMaker, prompt_of, published, rays_processes, seeds
from tests.helpers.scripted_engine import BAD_START
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is garbage-collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_pool_that_cannot_start_says_why_at_once(make_pool: PoolMaker, tmp_path: Path) -> None:
    (tmp_path / BAD_START).touch()
    with pytest.raises(PoolError, match=r"no sampling worker is left.*the model is not there"):
        make_pool()


def test_a_worker_that_cannot_be_made_says_why(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example on a machine without the project: Ray's first line says only that the actor died."""

    class Unmade:
        def __init__(self, cpus: int) -> None:
            raise ModuleNotFoundError("No module named 'rollout'")

        def start(self, *_: Any) -> None: ...

    monkeypatch.setattr("rollout.pool.worker_handle.PoolWorker", Unmade)
    with pytest.raises(PoolError, match=r"no sampling worker is left.*ModuleNotFoundError: No module named 'rollout'"):
        make_pool()


def test_what_fails_in_ray_itself_is_an_error_of_the_pool(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So finished work is saved, and the error is one line. Example: an object store that others have filled."""
    from ray.exceptions import ObjectStoreFullError

    pool = make_pool()

    def full(*_: Any) -> None:
        raise ObjectStoreFullError("Failed to put an object of 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("ray.put", full)
        with pytest.raises(PoolError, match=r"^Ray failed: Failed to put an object of 2 GiB$"):
            pool.load_adapter(published(tmp_path, 1))
    pool._size.look_again = full
    with pytest.raises(PoolError, match=r"^Ray failed: Failed to put"):
        pool.generate([prompt_of(1)], SAMPLING, None, seeds([prompt_of(1)]))
    woken = threading.Event()
    with monkeypatch.context() as patch:  # the store's process is stopped: the supervision is told, and the call hangs
        patch.setattr("ray.put", lambda _: woken.wait(60))
        with pytest.raises(PoolError, match=r"^Ray failed: Failed to put"):
            pool.load_adapter(published(tmp_path, 2))
    woken.set()
    # A worker that was busy is sent a version only when it is free.
    pool._versions["late"], pool._workers[0].call, pool._workers[0].samples = SimpleNamespace(call=full), None, []
    with pytest.raises(PoolError, match=r"^Ray failed: Failed to put"):
        pool.submit(PromptBatch([prompt_of(1)], SAMPLING, None, seeds([prompt_of(1)])))
    with monkeypatch.context() as patch:
        patch.setattr("ray.kill", full)
        pool.close()  # raises no error of its own that would hide the first


def test_no_call_waits_for_a_ray_that_hangs(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped head leaves calls to it unanswered for ever, and the supervision of the workers with the lock held."""
    from rollout.pool.local_cluster import Silence

    monkeypatch.setattr("rollout.pool.ray_pool.SILENT_S", 0.5)
    monkeypatch.setattr("rollout.pool.ray_pool.CLOSE_S", 0.5)
    pool, answer = make_pool(), threading.Event()
    pool._size.look_again = answer.wait
    prompts = [prompt_of(1)]
    silent = r"^Ray has not answered for 0 s: its head, or its process on this machine, is stopped, gone, or out of"
    with pytest.raises(PoolError, match=silent):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))
    pool._silence = Silence()
    with pytest.raises(PoolError, match=silent):  # ranks ask for news every second
        [pool.collect(Request(SAMPLING, None), 0.1) for _ in range(50)]
    with pytest.raises(PoolError, match=silent):
        pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
    assert (pool.alive, pool.figures()) == (1, {})
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 3
    answer.set()


def test_a_call_to_ray_has_a_limit_and_keeps_its_errors() -> None:
    from rollout.pool.local_cluster import within

    def fails() -> None:
        raise TimeoutError("of its own")

    assert within(lambda: 1, 5) == 1
    with pytest.raises(TimeoutError, match="of its own"):
        within(fails, 5)
    with pytest.raises(PoolError, match="Ray has not answered for 0 s"):
        within(threading.Event().wait, 0.1)


def test_a_stopped_process_takes_nobody_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z for an hour, then fg: the supervision has not turned either."""
    from rollout.pool.local_cluster import Silence

    heard_at = {0.0: 0.0, 0.5: 0.0, 1.0: 1.0, 1.5: 1.0, 3601.5: 1.0, 3602.0: 1.0, 3602.5: 3602.5}
    clock = iter(heard_at)
    monkeypatch.setattr("rollout.pool.local_cluster.time", SimpleNamespace(monotonic=lambda: next(clock)))
    silence = Silence()
    assert [silence.seconds(heard) for heard in [*heard_at.values()][1:]] == [0.5, 0.0, 0.5, 1.5, 2.0, 0.0]


def test_a_cluster_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of Ray that is stopped would be waited for without end, and once more when the program ends."""
    from ray._private import worker

    from rollout.pool import local_cluster

    killed: list[dict[str, bool]] = []
    unregistered: list[Any] = []

    class Node:
        def is_head(self) -> bool:
            return True

        def live_processes(self) -> list[Any]:
            return []

        def kill_all_processes(self, **how: bool) -> None:
            killed.append(how)

    monkeypatch.setattr(local_cluster, "LEAVE_S", 0.1)
    monkeypatch.setattr("ray.shutdown", threading.Event().wait)
    monkeypatch.setattr("ray._private.worker._global_node", Node())
    monkeypatch.setattr("atexit.unregister", unregistered.append)
    local_cluster.leave_ray()
    assert worker._global_node is None  # else Ray itself would wait a second for each of its processes
    assert killed == [{"check_alive": False, "allow_graceful": False}]
    assert len(unregistered) == 1


def test_ray_that_ends_on_the_learners_machine_ends_the_pool(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example by `ray stop`: Ray would end the process as soon as anything is put into the object store."""
    from ray._private import worker

    from rollout.pool.versions import version_of

    pool, gone = make_pool(), r"^Ray no longer runs on this machine: it was stopped, or killed for lack of memory"
    socket_of_nobody = SimpleNamespace(plasma_store_socket_name=str(tmp_path / "none"))
    sent = version_of(published(tmp_path, 0))
    sent.forget(pool._workers[0])
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_global_node", socket_of_nobody)
        with pytest.raises(PoolError, match=gone):
            pool.load_adapter(published(tmp_path, 1))
        with pytest.raises(PoolError, match=gone):  # for a worker that comes later
            sent.call(pool._workers[0], 0.0)
        pool._size._looked = 0.0
        until(pool._supervision.done)
    with pytest.raises(PoolError, match=gone):
        pool.generate([prompt_of(1)], SAMPLING, None, seeds([prompt_of(1)]))


def test_what_workers_left_that_died_with_their_ray_goes(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed until the next run with a pool: with `method: full` a whole model for each worker."""
    pool = make_pool()
    monkeypatch.setattr("rollout.pool.ray_pool.leave_ray", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    left = tmp_path / "temporary" / "rl_engine_worker_left"
    left.mkdir(parents=True)
    (left / ".in_use").touch()
    pool._scratch = ScratchDirectory.make("rl_engine_ray_")  # as of a pool that started its own cluster
    pool.close()
    pool._scratch = None
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_pool_without_room_says_what_it_waits_for(
    make_pool: PoolMaker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.pool.worker_handle.PLACE_S", 3)  # Ray knows after a second what is asked of it
    lack = "each takes 99 cores on one machine, and the cluster has 4 of 4 cores free: end what else runs there"
    with pytest.raises(PoolError, match=f"no sampling worker is left.* no place in the cluster in time: {lack}"):
        make_pool(cpus_per_worker=99, start_timeout_s=5)
    assert f"1 of 1 sampling workers wait for a place, at most 5 s (rollout.start_timeout_s): {lack}" in caplog.text


def test_a_directory_whose_name_is_too_long_for_sockets_is_named() -> None:
    from rollout.pool.local_cluster import start_ray
    from rollout.pool.space import LONGEST_DIRECTORY

    with pytest.raises(PoolError, match="set TMPDIR to a directory with a shorter one"):
        start_ray(1, Path("/" + LONGEST_DIRECTORY * "x"))


@pytest.mark.parametrize(
    "said",
    [
        Exception(
            "The current node timed out during startup. This could happen because the GCS has become overloaded."
        ),
        RuntimeError("\nFailed to start GCS. \n Last 0 lines of error files:\n."),
        ValueError("The object store cannot be so large"),
    ],
)
def test_ray_that_does_not_start_or_take_us_is_one_line(said: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray raises, the message is one line with the key and the way out."""
    from rollout.pool.local_cluster import join_ray, start_ray

    def init(**_: Any) -> None:
        raise said

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(PoolError) as started:
        start_ray(1, Path("/tmp"))
    words = str(said).split(". ")[0].strip()
    assert str(started.value).startswith(f"rollout.placement is ray, and Ray did not start here: {words}")
    assert "rollout.placement=inprocess" in str(started.value)
    with pytest.raises(PoolError) as joined:
        join_ray("head:6379")
    refused = "rollout.address is head:6379, and the Ray cluster there did not accept this process"
    assert str(joined.value).startswith(f"{refused}: {words}")
    assert "RAY_AUTH_MODE=token" in str(joined.value)
    assert "\n" not in f"{started.value}{joined.value}"


def test_a_cluster_of_another_version_is_told_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import check_version_info

    from rollout.pool.local_cluster import join_ray

    def init(**_: Any) -> None:
        check_version_info({"ray_version": "2.0.0", "python_version": "3.9.1"}, "here")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        PoolError, match=r"Ray: 2\.0\.0 Python: 3\.9\.1 This process .* `ray start --head` in this env"
    ) as told:
        join_ray("head:6379")
    assert "\n" not in str(told.value)


def test_a_head_that_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system accepts connections to a stopped process, so Ray does not fail: it tries again, for minutes."""
    from rollout.pool.local_cluster import join_ray

    woken = threading.Event()
    monkeypatch.setattr("ray.init", lambda **_: woken.wait(60))
    monkeypatch.setattr("rollout.pool.local_cluster.SILENT_S", 0.2)
    with pytest.raises(PoolError, match=r"^rollout.address is head:6379, and .* Ray has not answered for 0 s: "):
        join_ray("head:6379")
    woken.set()


def test_the_local_cluster_is_out_of_reach(ray_cluster: Path) -> None:
    """Its processes listen only on the loopback interface, and require a token."""
    found = []
    for process in rays_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert len(found) >= 4
    assert set(found) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert ray_cluster.is_dir()


def test_a_pool_is_closed_at_once_while_its_workers_sample(make_pool: PoolMaker, tmp_path: Path) -> None:
    """A run that is asked to stop has only seconds, not the time that a piece may take; nothing is left behind."""
    import ray

    (tmp_path / "hang").touch()
    pool = make_pool(workers=2)
    prompts = [prompt_of(0, "hang"), prompt_of(1)]
    until(lambda: pool.alive == 2)
    places = [ray.get(worker.where)[2] for worker in pool._workers]
    assert all(place.is_dir() for place in places)
    pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
    until(lambda: (tmp_path / "log").exists() and not (tmp_path / "hang").exists())
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 3
    until(lambda: not any(place.exists() for place in places))


def test_a_program_with_a_pool_still_hears_a_request_to_stop() -> None:
    """Ray replaces the program's signal handler with one that ends the program."""
    code = """
import os, signal
from pathlib import Path
from rollout.pool.environment import prepare_ray
prepare_ray(None)
from rollout.pool.local_cluster import leave_ray, start_ray
from rollout.pool.scratch import ScratchDirectory
from rollout.stopping import StopRequest, Stopped
scratch, stop = ScratchDirectory.make("rl_engine_ray_test_"), StopRequest()
try:
    with stop.listening():
        start_ray(1, scratch.path)
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped:
    leave_ray()  # Ray's processes would write into what is removed
    scratch.remove()
    print(f"heard {stop.exit_code}, {scratch.path}")
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    heard, _, place = answer.stdout.strip().partition(", ")
    assert (answer.returncode, heard) == (0, "heard 143"), answer.stderr
    assert not Path(place).exists()
