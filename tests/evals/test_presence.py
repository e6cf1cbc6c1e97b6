"""Heartbeats between a launcher's processes, with one that is gone and one that hangs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evals.launch import presence
from evals.launch.presence import Presence
from tests.helpers.launched import launched
from tests.helpers.waiting import until

# A program like the commands: its work replaces LOAD, and what rank 1 does replaces ACT.
PROGRAM = """
import os, signal, subprocess, sys, time
from evals.launch import presence
from evals.launch.group import join_launch
from rewards.command import print_error
from rollout.stopping import Stopped, StopRequest

presence.BEAT_S, presence.SILENT_S = 0.2, 2.0
stop = StopRequest()
with stop.listening():
    launch = join_launch()
    try:
        with presence.presence(launch.rank, launch.count, lambda: "There is a way on."):
            launch.barrier()
            if launch.rank == 1:
                ACT
            LOAD
    except Stopped:
        print_error("stopped", 1)
    except RuntimeError as error:
        if (lost := presence.lost_rank(error)) is not None:
            print_error(lost, 1)
        raise
"""


def told(tmp_path: Path, *, act: str, load: str) -> tuple[int, list[str]]:
    done = launched(tmp_path, PROGRAM.replace("ACT", act).replace("LOAD", load))
    lines = done.stderr.splitlines()
    return done.returncode, [line for line in lines if line.startswith(("error: ", "There is"))]


ALL_STOP = (
    "ranks = f'$(pgrep -P {os.getppid()})'; "
    "subprocess.Popen(['bash', '-c', f'kill -STOP {ranks}; sleep 3; kill -CONT {ranks}'])"
)
# Long enough for the launcher to find, too, that the rank does not answer, but shorter than the launcher would wait.
HANGS = "subprocess.Popen(['setsid', 'bash', '-c', f'kill -STOP {os.getpid()}; sleep 5; kill -CONT {os.getpid()}'])"


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    """The other rank waits in gloo, which would wait for half an hour. Earlier, all ranks are stopped for longer than
    one may be silent, as by a scheduler that suspends its jobs, and then continue."""
    hangs = f"{ALL_STOP}; time.sleep(4); print_error('goes on', 1); {HANGS}; time.sleep(60)"
    code, lines = told(tmp_path, act=hangs, load="launch.barrier()")
    assert code == 1
    assert lines[:3] == [
        "error: goes on",
        "error: rank 0 lost another rank (no sign of rank 1 for 2 s): if that was not killed, its output says why",
        "There is a way on.",
    ]


def test_ranks_that_their_launcher_leaves_behind_end_too(tmp_path: Path) -> None:
    """The launcher holds the store through which they hear each other, and nothing else would end them."""
    code, lines = told(tmp_path, act="os.kill(os.getppid(), signal.SIGKILL)", load="time.sleep(60)")
    assert code == -signal.SIGKILL
    assert sorted(lines) == [
        "There is a way on.",
        "There is a way on.",
        *(
            f"error: rank {one} lost another rank (no sign of rank {other} for 2 s, and the launcher is "
            "gone): if that was not killed, its output says why"
            for one, other in ((0, 1), (1, 0))
        ),
    ]


def test_a_rank_that_is_ended_for_another_says_so(tmp_path: Path) -> None:
    """The launcher ends it while it loads and waits for no other rank."""
    code, lines = told(tmp_path, act="os.kill(os.getpid(), signal.SIGKILL)", load="time.sleep(60)")
    assert code == 1
    assert lines == [
        "error: rank 0 lost another rank (rank 1 failed or stopped responding): if that was not killed, its output "
        "says why",
    ]


def test_ranks_that_are_asked_to_stop_while_they_load_say_so(tmp_path: Path) -> None:
    _, lines = told(tmp_path, act="os.kill(os.getppid(), signal.SIGTERM)", load="time.sleep(60)")
    assert lines == ["error: stopped"] * 2


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Presence]]:
    """Three processes' presences in one process."""
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    store = dist.HashStore()  # type: ignore[attr-defined]
    ranks = [Presence(rank, 3, store, pytest.fail) for rank in range(3)]
    yield ranks
    for rank in ranks:
        rank.close()


def test_who_leaves_knows_who_failed_and_who_is_there(three: list[Presence]) -> None:
    """One that does not leave is still alive, not lost."""
    three[0].leave(failed=False)
    three[1].leave(failed=False)
    assert three[0].lost() == []
    three[2].leave(failed=True)
    assert three[0].lost() == three[1].lost() == [2]


def test_one_that_is_still_starting_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the launcher's processes may take longer to start than another may be silent."""
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    monkeypatch.setattr(presence, "SILENT_S", 0.5)
    said: list[str] = []
    store = dist.HashStore()  # type: ignore[attr-defined]
    first = Presence(0, 2, store, said.append)
    time.sleep(1.5)
    assert said == []
    second = Presence(1, 2, store, said.append)
    until(lambda: first._heard[1])
    second.close()
    until(lambda: said)
    first.close()
    assert "no sign of rank 1 for 0 s" in said[0]


def test_a_silent_process_is_lost(three: list[Presence]) -> None:
    assert three[0].lost() == []
    three[1].close()  # the last thing it sent was a beat
    three[0].leave(failed=False)
    assert three[0].lost() == [1]


class GoneStore:
    def set(self, *_: Any) -> None:
        raise dist.DistNetworkError("Connection reset by peer")

    multi_get: Any = set


def test_where_one_is_that_never_comes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank is alive, and another has waited for it in gloo for half an hour. Ranks that wait as well are not
    named."""
    monkeypatch.setattr(presence, "BEAT_S", 60.0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    waits = "9 distributed_c10d.py:2810 in barrier"
    here = Presence(0, 3, GoneStore(), pytest.fail)
    here._told = {1: "9 rewards.py:12 in score", 2: waits}
    monkeypatch.setattr(presence, "_here", here)
    said = "Timed out waiting 1800000ms for recv operation to complete"
    error = RuntimeError(f"[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] {said}")
    not_come = f"rank 0 waited for another rank, which has not come ({said}): "
    assert presence.lost_rank(error) == f"{not_come}rank 1 is still running, at rewards.py:12 in score"
    here._told[1] = waits
    assert str(presence.lost_rank(error)).count("distributed_c10d.py") == 2
    here._told = {1: presence.FAILED, 2: presence.LEFT}
    assert str(presence.lost_rank(error)).startswith(f"rank 0 lost another rank ({said})")
    here.close()


def test_where_the_store_is_gone_nobody_is_called_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store belonged to a process of the launcher, which ends all ranks."""
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    alone = Presence(0, 2, GoneStore(), pytest.fail)
    assert alone.lost() == []
    alone.close()


def test_one_left_behind_before_it_heard_of_another_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher, and the store with it, was killed right away."""
    monkeypatch.setattr(presence, "BEAT_S", 0.1)
    monkeypatch.setattr(presence, "SILENT_S", 0.5)
    said: list[str] = []
    alone = Presence(0, 2, GoneStore(), said.append)
    until(lambda: said)
    alone.close()
    assert "no sign of rank 1 for 0 s, and the launcher is gone" in said[0]
