"""A launcher's processes that lose each other: torch's own error, and the message for the user."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from evals.launch.group import LAUNCH_VARIABLES, is_launched, joining
from evals.launch.presence import lost_rank
from tests.helpers.launched import launched

IS_KILLED = """
import os, signal
from evals.launch.group import join_launch
from evals.launch.presence import lost_rank

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a run, which notes it and finishes its step
launch = join_launch()
launch.barrier()
if launch.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    launch.barrier()
except RuntimeError as error:
    print(lost_rank(error))
"""
WAITS = """
import os, socket
import torch.distributed
from evals.launch.group import join_launch
from rollout.stopping import StopRequest

with socket.socket() as listener, StopRequest().listening():
    listener.bind(("127.0.0.1", 0))  # and never listens
    os.environ.update(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(listener.getsockname()[1]))
    print("joins", flush=True)
    join_launch()
"""
INTERFACE = (
    "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:83] ifa != nullptr. Unable to find "
    "interface for: eth9"
)


def test_a_killed_ranks_end_is_reported_by_the_other(tmp_path: Path) -> None:
    """On CPUs, where gloo reports it."""
    done = launched(tmp_path, IS_KILLED)
    (told,) = done.stdout.splitlines()
    assert told.startswith("rank 0 lost another rank (")
    assert told.endswith("): if that was not killed, its output says why")
    assert "gloo" not in told
    assert "remote worker" not in told


def test_a_rank_that_waits_for_the_others_can_be_stopped() -> None:
    """The wait is torch's own, in which no handler of Python's runs."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "joins\n"
            time.sleep(1)
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
        finally:
            process.kill()


def as_one_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


def test_a_single_process_has_no_rank_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sampler's own group fails where no file can be written, and no other output says why."""
    error = dist.DistStoreError("File size limit exceeded")
    assert lost_rank(error) is None
    as_one_of(1, monkeypatch)
    assert lost_rank(error) is None
    as_one_of(2, monkeypatch)
    assert lost_rank(error) is not None


def test_other_libraries_errors_of_lost_ranks_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    as_one_of(2, monkeypatch)
    said = lost_rank(dist.DistBackendError("NCCL error: remote process exited\nncclRemoteError: …"))
    assert said == (
        "rank 0 lost another rank (NCCL error: remote process exited): if that was not killed, its output says why"
    )


@pytest.mark.parametrize("message", ["", "mat1 and mat2 shapes cannot be multiplied", INTERFACE], ids=range(3))
def test_no_other_error_is_taken_for_a_lost_rank(message: str) -> None:
    assert lost_rank(RuntimeError(message)) is None


def test_an_interface_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"^GLOO_SOCKET_IFNAME is 'eth9', and no .* is up: there are .*\blo\b"),
        joining(),
    ):
        raise RuntimeError(INTERFACE)
    with pytest.raises(ValueError, match=r"^the network interface lo is down .*`ip link set lo up`"), joining():
        raise RuntimeError(INTERFACE.replace("eth9", "lo"))
    with pytest.raises(RuntimeError, match="another"), joining():
        raise RuntimeError("another")


def test_ranks_that_have_one_card_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL says so where processes were started by hand with a RANK and no LOCAL_RANK."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000"
    told = r"^ranks 1 and 0 have the same card, as LOCAL_RANK is 0 here: start .* torchrun, or set LOCAL_RANK to each"
    error = dist.DistBackendError(f"NCCL error in: NCCLUtils.cpp:94, invalid usage, NCCL version 2.29\n{said}")
    with pytest.raises(ValueError, match=told), joining():
        raise error
    assert re.match(told, str(lost_rank(error)))  # nccl itself joins with the first collective call


IN_USE = (
    "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, "
    "name: EADDRINUSE, message: address already in use"
)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        (IN_USE, ValueError, "^MASTER_PORT is 29500, and another process listens there, .*: give each run a port"),
        (
            "Timed out after 1801 seconds waiting for clients. 1/2 clients joined.",
            ConnectionError,
            "1/2 clients joined",
        ),
        (
            "The client socket has timed out after 1800000ms while trying to connect to (head, 29500).",
            ConnectionError,
            r"^rank 1 of 2 has not met the others at MASTER_ADDR:MASTER_PORT, head:29500 \(The client .*: start",
        ),
        ("Read error [127.0.0.1]:23962: Connection reset by peer", RuntimeError, "^Read error"),
    ],
    ids=["port", "clients", "client", "lost"],
)
def test_ranks_that_have_not_met_are_not_called_lost(
    said: str, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(LAUNCH_VARIABLES, ("1", "2", "head", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=told), joining():
        raise dist.DistNetworkError(said)


@pytest.mark.parametrize(
    ("count", "missing", "launched"),
    [
        ("2", (), True),
        ("1", (), True),  # torchrun --nproc-per-node 1
        ("1", LAUNCH_VARIABLES, False),
        ("1", ("MASTER_PORT",), False),
        ("2", ("WORLD_SIZE",), False),
        ("1", ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), False),  # RANK is a leftover from something else
    ],
)
def test_a_launcher_names_all_that_it_started(count: str, missing: tuple[str, ...], launched: bool) -> None:
    told = {"RANK": "0", "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert is_launched({name: value for name, value in told.items() if name not in missing}) is launched


@pytest.mark.parametrize("missing", [("MASTER_PORT",), ("MASTER_ADDR", "MASTER_PORT")])
def test_several_processes_that_cannot_be_found_are_refused(missing: tuple[str, ...]) -> None:
    told = {name: "2" for name in LAUNCH_VARIABLES if name not in missing}
    with pytest.raises(ValueError, match=rf"WORLD_SIZE \('2'\) .*, but not {', '.join(missing)}: start "):
        is_launched(told)
