"""This machine → a Ray cluster of its own, out of reach of others, or a place in one that runs."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

from datafiles.text import first_line
from rollout.engine import PoolError
from rollout.pool.room import SMALLEST_STORE, too_long
from rollout.stopping import STOPS

NOT_STARTED = (
    "on a machine that is busy it may start at another try; rollout.placement=inprocess samples without Ray, and "
    "rollout.address joins a cluster that runs"
)
NOT_JOINED = (
    "start one with `ray start --head`, and give this process its token (RAY_AUTH_MODE=token and ~/.ray/auth_token)"
)


def start_ray(cpus: int, directory: Path, cards: Sequence[str] = (), store_bytes: int = SMALLEST_STORE) -> None:
    """A cluster of this machine alone, on the loopback device, that keeps its sockets and logs in `directory`.

    `cards`: those that are its own, as `visible_cards` names them. `store_bytes`: the size of the object store, which
    holds the adapters, and the prompts and completions under way.
    Raises `PoolError` when the directory's name is too long for the sockets, and when Ray does not start.
    """
    if (why := too_long(directory)) is not None:
        raise PoolError(why)
    with starting("rollout.placement is ray, and Ray did not start here", NOT_STARTED), _visible_cards(cards):
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=len(cards),
            object_store_memory=store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(directory),
        )
    bound = ray.util.get_node_ip_address()
    if bound != "127.0.0.1":
        raise PoolError(f"the local Ray binds to {bound}: call prepare_ray before anything imports ray")


def join_ray(address: str) -> None:
    """The cluster that runs at `address`. Raises `PoolError` when it does not take this process."""
    with starting(f"rollout.address is {address}, and no Ray cluster there takes this process", NOT_JOINED):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def starting(what: str, way_out: str) -> Iterator[None]:
    """A call of `ray.init`: what it fails with is told as a `PoolError` of one line, `what: …: way_out`."""
    with signals_kept():
        try:
            yield
        # Ray has no class for it: of a process that does not answer in time it raises a bare Exception.
        except Exception as error:
            raise PoolError(f"{what}: {first_sentence(error)}: {way_out}") from error


def first_sentence(error: Exception) -> str:
    """Of its first line, without the stop."""
    return first_line(error).split(". ")[0].rstrip(".:")


@contextmanager
def signals_kept() -> Iterator[None]:
    """What is started inside the block does not hear a request to stop: it is often sent to every process of a job,
    and the run is to end them itself, when it has saved. Ray's handlers, which would end this process, do not stay."""
    handlers = {number: signal.getsignal(number) for number in STOPS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _visible_cards(cards: Sequence[str]) -> Iterator[None]:
    """Inside the block a cluster that is started sees these cards alone: the others are the learner's."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
    try:
        yield
    finally:
        if cards:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
