"""This machine → a private Ray cluster of its own, or a place in an existing one."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import ray
from ray._private import worker
from ray.exceptions import RayError

from datafiles.text import first_line, in_one_line
from rollout.engine import PoolError
from rollout.pool.space import SMALLEST_STORE, too_long
from rollout.stopping import STOPS

NOT_STARTED = (
    "on a busy machine another try may help; rollout.placement=inprocess samples without Ray, and rollout.address "
    "joins a running cluster"
)
NOT_JOINED = (
    "start one with `ray start --head` in this environment, and give this process its token (RAY_AUTH_MODE=token and "
    "~/.ray/auth_token)"
)
SILENT_S = 50.0
"""How long Ray may take to answer. If its head is gone, Ray itself ends the process after 60 s, without saving."""
LOOK_S = 1.0
"""How often whoever waits looks at least; a longer time counts as this (`Silence`)."""
LEAVE_S = 20.0
"""How long Ray may take to end its processes here."""
SILENT = (
    "Ray has not answered for {:.0f} s: its head, or its process on this machine, is stopped, gone, or out of reach "
    "over the network"
)

T = TypeVar("T")

# Ray prints a paragraph on stdout for every process that dies, those that the pool itself ends included. The pool says
# which worker was lost and why.
worker.listen_error_messages = lambda *_: None


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
        # `ray.init` itself would try for a quarter of an hour to reach a head that is stopped.
        within(partial(ray.init, address=address, log_to_driver=False, logging_level=logging.ERROR), SILENT_S)


def leave_ray() -> None:
    """Disconnect, and end the cluster if it was started here."""
    # Ray would first ask each of its processes to stop, which they ignore (`signals_kept`), and wait a second for it.
    node, worker._global_node = worker._global_node, None
    try:
        within(ray.shutdown, LEAVE_S)
    except PoolError:
        atexit.unregister(ray.shutdown)  # it would hang again, when the program ends
    if node is not None and node.is_head():
        below = []
        for _, process in node.live_processes():
            with suppress(psutil.NoSuchProcess):
                below += psutil.Process(process.pid).children(recursive=True)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        for child in below:  # Ray's agents outlive a raylet that is killed, and write into its directory
            with suppress(psutil.NoSuchProcess):
                child.kill()


def in_background(call: Callable[[], T]) -> Future[T]:
    """Call in a thread for which nobody waits when the program ends."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks for the answer
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def within(call: Callable[[], T], limit_s: float = SILENT_S) -> T:
    """What a call to Ray returns or raises; `PoolError` if it takes longer. Some calls wait without limit for a process
    of Ray that is stopped, or on a machine that fell silent."""
    answer = in_background(call)
    try:
        return answer.result(limit_s)
    except TimeoutError:
        if answer.done():
            raise
        raise PoolError(SILENT.format(limit_s)) from None


class Silence:
    """How long another thread has not been heard of. The time for which this process was itself stopped (Ctrl-Z, a
    suspended job) does not count: nobody was heard of then."""

    def __init__(self) -> None:
        self._heard = self._looked = time.monotonic()
        self._seconds = 0.0

    def seconds(self, heard: float) -> float:
        """The silence so far. `heard` is when the other was last heard of. Ask at least every `LOOK_S`."""
        now = time.monotonic()
        self._seconds = self._seconds + min(now - self._looked, LOOK_S) if heard == self._heard else 0.0
        self._heard, self._looked = heard, now
        return self._seconds


@contextmanager
def faults_of_ray() -> Iterator[None]:
    """Turn failures of Ray itself, such as a full object store or disk, into a `PoolError`. A worker's failure is not
    one of these: it is the worker's answer, and ends only that worker."""
    try:
        yield
    except RayError as error:
        raise PoolError(f"Ray failed: {first_line(error)}") from error


@contextmanager
def starting(what: str, remedy: str) -> Iterator[None]:
    """Context of a call to `ray.init`: turns its failure into a one-line `PoolError`, `what: …: remedy`."""
    with signals_kept():
        try:
            yield
        # Ray raises a bare Exception if a process does not answer in time.
        except Exception as error:
            raise PoolError(f"{what}: {first_sentence(error)}: {remedy}") from error


def first_sentence(error: Exception) -> str:
    """The first sentence of the error's first line, without the full stop. A line that ends in a colon says nothing
    without those that follow, as where Ray lists two versions."""
    line = first_line(error)
    return (in_one_line(error) if line.endswith(":") else line).split(". ")[0].rstrip(".:")


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
