"""This machine → a private Ray cluster of its own, or a place in an existing one."""

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
    "on a busy machine another try may help; rollout.placement=inprocess samples without Ray, and rollout.address "
    "joins a running cluster"
)
NOT_JOINED = (
    "start one with `ray start --head`, and give this process its token (RAY_AUTH_MODE=token and ~/.ray/auth_token)"
)


def start_ray(cpus: int, directory: Path, cards: Sequence[str] = (), store_bytes: int = SMALLEST_STORE) -> None:
    """Start a cluster of this machine alone, on the loopback device, with its sockets and logs in `directory`.

    `cards`: the cards that it may use, as named by `visible_cards`. `store_bytes`: the size of the object store, which
    holds adapters, and prompts and completions in transit.
    Raises `PoolError` when the directory's path is too long for the sockets, and when Ray does not start.
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
    """Join the cluster at `address`. Raises `PoolError` when it does not accept this process."""
    with starting(f"rollout.address is {address}, and the Ray cluster there did not accept this process", NOT_JOINED):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def starting(what: str, way_out: str) -> Iterator[None]:
    """Context of a call to `ray.init`: turns its failure into a one-line `PoolError`, `what: …: way_out`."""
    with signals_kept():
        try:
            yield
        # Ray raises a bare Exception if a process does not answer in time.
        except Exception as error:
            raise PoolError(f"{what}: {first_sentence(error)}: {way_out}") from error


def first_sentence(error: Exception) -> str:
    """The first sentence of the error's first line, without the full stop."""
    return first_line(error).split(". ")[0].rstrip(".:")


@contextmanager
def signals_kept() -> Iterator[None]:
    """Processes started inside the block ignore requests to stop, which are often sent to every process of a job: the
    run ends them itself once it has saved. Ray's own handlers, which would end this process, are removed again."""
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
    """A cluster started inside the block sees only these cards; the others belong to the learner."""
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
