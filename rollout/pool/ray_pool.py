"""Prompts → completions, by workers on this machine or on many: a Ray actor each, with the in-process engine inside.

With `rollout/pool/local_cluster.py` the only file that imports ray. A request is split into work items of a few
prompts (`rollout/work_items.py`), each sampled as one batch. A thread watches the workers: one that dies, hangs, fails
or answers from another adapter is replaced, and its work item is assigned again. No prompt is lost and none counted
twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.adapters import MANIFEST, AdapterError, read_manifest, sha256_of
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, ExtendingEngine, PoolError, PoolSettings
from rollout.pool.local_cluster import signals_kept, start_ray
from rollout.pool.scratch import ScratchDirectory
from rollout.pool.worker import PoolWorker, vllm_engine
from rollout.types import AdapterRef, Prompt, RolloutGroup
from rollout.work_items import Request, WorkItem, extended, split

log = logging.getLogger(__name__)

SCRATCH = "rl_engine_ray_"
# How soon a new call is waited for, a late one noticed and a signal heard.
POLL_S = 0.05
# For workers to leave by themselves when the pool is closed.
CLOSE_S = 5.0
# A work item that has cost so many workers is at fault itself.
MAX_WORKERS_LOST = 3

Complaint = str | None


@dataclass(frozen=True, slots=True)
class _Call:
    """What a worker was asked, until when it may take, and what takes the answer and says what is wrong with it."""

    handle: Any
    deadline: float
    accept: Callable[[Any], Complaint]
    item: WorkItem | None = None
    """What it samples; None for any other request."""


@dataclass(eq=False)
class _Worker:
    """An actor as the pool knows it. It is asked one thing at a time."""

    actor: Any
    where: Any
    """Handle of (node, process id, directory of its files): known before the engine stands."""
    call: _Call | None = None
    ready: bool = False
    loaded: set[str] = field(default_factory=set)
    """Keys of the versions whose digest it has acknowledged."""


@dataclass(eq=False)
class RayPool:
    """A `PoolEngine`. `close` ends the workers, and the local cluster if it was started here."""

    engine: EngineSettings
    settings: PoolSettings
    make_engine: Callable[[EngineSettings], ExtendingEngine] = vllm_engine
    lost: int = field(default=0, init=False)
    """Workers that had to be given up."""
    _workers: list[_Worker] = field(default_factory=list, init=False)
    _adapters: dict[str, tuple[AdapterRef, Any]] = field(default_factory=dict, init=False)
    """Versions that workers are to have, by key, with their files in the object store."""
    _urgent: deque[WorkItem] = field(default_factory=deque, init=False)
    _waiting: deque[WorkItem] = field(default_factory=deque, init=False)
    _in_a_row: list[str] = field(default_factory=list, init=False)
    """Why workers were lost since a work item was last sampled."""
    _begun: bool = field(default=False, init=False)
    """Whether a worker has ever started."""
    _wanted: int = field(default=0, init=False)
    """Workers to be replaced."""
    _closing: bool = field(default=False, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    """Held by whoever reads or changes any of the above."""
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "pool"), init=False)
    _supervision: Future[None] = field(init=False)
    _scratch: ScratchDirectory | None = field(default=None, init=False)
    """The files of a connection to Ray that is this pool's own."""

    def __post_init__(self) -> None:
        with ExitStack() as undone:
            undone.callback(self.close)
            self._connect()
            self._workers = [self._start_worker() for _ in range(self.settings.workers)]
            self._supervision = self._thread.submit(self._supervise)
            # The others may come later: what they have missed they are told then.
            self._wait_until(lambda: any(worker.ready for worker in self._workers))
            undone.pop_all()

    @property
    def alive(self) -> int:
        """Workers that sample, or could."""
        with self._changed:
            return sum(worker.ready for worker in self._workers)

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
        *,
        urgent: bool = False,
    ) -> Request:
        """See `PoolEngine.submit`."""
        request = split(prompts, sampling, adapter, seeds, self.settings.prompts_per_piece)
        return self._queued(request, self._urgent if urgent else self._waiting)

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `PoolEngine.extend`."""
        return self._queued(extended(request, sampling, adapter), self._waiting)

    def _queued(self, request: Request, queue: deque[WorkItem]) -> Request:
        if request.adapter is not None and request.adapter.key not in self._adapters:
            raise AdapterError(f"{request.adapter.key} is not loaded; loaded are {sorted(self._adapters) or 'none'}")
        with self._changed:
            queue.extend(request.items)
            self._assign()
        return request

    def collect(self, request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        """See `PoolEngine.collect`."""
        return request.groups() if self._wait_until(lambda: request.done, timeout_s) else None

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`: ahead of everything that was submitted and not begun."""
        request = self.submit(prompts, sampling, adapter, seeds, urgent=True)
        self._wait_until(lambda: request.done)
        return request.groups()

    def load_adapter(self, ref: AdapterRef) -> None:
        """See `Engine.load_adapter`. Every worker gets the files before its next work item, checks them, and says
        what it has; nobody waits for those that are busy."""
        if ref.key in self._adapters:
            raise AdapterError(f"{ref.key} is already loaded: names are never reused")
        if sha256_of(ref.path / MANIFEST) != ref.sha256:
            raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
        names = [MANIFEST, *read_manifest(ref.path)["files"]]
        files = ray.put({name: (ref.path / name).read_bytes() for name in names})
        with self._changed:
            self._adapters[ref.key] = (ref, files)
            self._assign()

    def unload_adapter(self, ref: AdapterRef) -> None:
        with self._changed:
            self._adapters.pop(ref.key, None)
            self._assign()

    def sleep(self) -> None:
        """Nothing to do, nor in `wake`: workers share no memory with the learner."""

    def wake(self) -> None: ...

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.shutdown()
        if ray.is_initialized():
            # One that is at work would hear of it when that is done.
            farewells = {worker.actor.close.remote(): worker for worker in self._workers if worker.call is None}
            gone = ray.wait(list(farewells), num_returns=len(farewells), timeout=CLOSE_S)[0] if farewells else []
            left = {farewells[handle] for handle in gone}
            for worker in self._workers:
                _end(worker, hangs=worker not in left)
            self._workers = []
        if self._scratch is not None:
            ray.shutdown()
            self._scratch.remove()

    def _connect(self) -> None:
        address, cpus = self.settings.address, self.settings.workers * self.settings.cpus_per_worker
        if ray.is_initialized():
            return  # by whoever made this pool: they will end it
        self._scratch = ScratchDirectory.make(SCRATCH)
        if address is None:
            start_ray(cpus, self._scratch.path, self.settings.cards)
        else:
            try:
                with signals_kept():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as error:  # Ray says no more, whatever the reason is
                raise PoolError(
                    f"rollout.address is {address}, and no Ray cluster there takes this process: start one with `ray "
                    "start --head`, and give this process its token (RAY_AUTH_MODE=token and ~/.ray/auth_token)"
                ) from error

    def _start_worker(self) -> _Worker:
        """A new worker that starts its engine."""
        cpus = self.settings.cpus_per_worker
        remote: Any = ray.remote(num_cpus=cpus, num_gpus=self.settings.gpus_per_worker, max_restarts=0)(PoolWorker)
        actor = remote.remote(cpus)
        worker = _Worker(actor, actor.__ray_call__.remote(_where))

        def started(_: None) -> Complaint:
            worker.ready = self._begun = True
            return None

        handle = actor.start.remote(self.engine, self.make_engine)
        worker.call = _Call(handle, self._by(self.settings.start_timeout_s), started)
        return worker

    def _by(self, timeout_s: float) -> float:
        return time.monotonic() + timeout_s

    def _wait_until(self, true: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
        """Whether it came true in time. Raises what ended the supervision."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not true():
                if self._supervision.done():
                    self._supervision.result()
                    raise PoolError("the pool was closed")
                if time.monotonic() > deadline:
                    return False
                self._changed.wait(POLL_S)
        return True

    def _supervise(self) -> None:
        """Hand out work and look at answers until the pool is closed. Raises `PoolError` when it cannot go on."""
        # Nobody joins a thread whose program has ended: it ends itself.
        while not self._closing and threading.main_thread().is_alive():
            with self._changed:
                calls = {worker.call.handle: worker for worker in self._workers if worker.call}
                if not calls:
                    self._changed.wait(POLL_S)
                    continue
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S)
            if ready:  # all the others that are there too: a pass over thousands of workers takes milliseconds
                ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            answers = {handle: _answer(handle) for handle in ready}
            with self._changed:
                now = time.monotonic()
                for handle, worker in calls.items():
                    assert worker.call is not None
                    if handle in answers:
                        self._handle_answer(worker, *answers[handle])
                    elif worker.call.deadline < now:
                        self._drop(worker, "it did not answer in time", hangs=True)
                # Before any has started, what stopped one would stop the next.
                while self._begun and self._wanted:
                    self._wanted -= 1
                    self._workers.append(self._start_worker())
                self._assign()
                self._changed.notify_all()

    def _assign(self) -> None:
        """Ask every worker that is free for the next thing it has to do."""
        for worker in self._workers:
            if worker.call is None:
                worker.call = self._next_call(worker)

    def _next_call(self, worker: _Worker) -> _Call | None:
        """Versions first, so that no item meets a worker without its adapter."""
        for key, (ref, files) in self._adapters.items():
            if key not in worker.loaded:
                handle = worker.actor.load_adapter.remote(ref, files)
                return _Call(handle, self._by(self.settings.start_timeout_s), partial(_acknowledged, worker, ref))
        for key in worker.loaded - self._adapters.keys():
            worker.loaded.remove(key)
            handle = worker.actor.unload_adapter.remote(key)
            return _Call(handle, self._by(self.settings.start_timeout_s), lambda _: None)
        for queue in (self._urgent, self._waiting):
            item = next((item for item in queue if item.ready), None)
            if item is not None:
                queue.remove(item)
                handle = _sampled_by(worker, item)
                return _Call(handle, self._by(self.settings.piece_timeout_s), item.take, item)
        return None

    def _handle_answer(self, worker: _Worker, answer: Any, complaint: Complaint) -> None:
        """Take the answer of a call that has ended."""
        call = worker.call
        assert call is not None
        complaint = complaint or call.accept(answer)
        if complaint is not None:
            self._drop(worker, complaint)
            return
        worker.call = None
        if call.item is not None:
            self._in_a_row = []

    def _drop(self, worker: _Worker, cause: str, *, hangs: bool = False) -> None:
        """Give a worker up, put its work item back, and ask for another while it is not hopeless.

        Raises `PoolError` when a work item has cost too many workers, or none is left.
        """
        self.lost += 1
        self._in_a_row.append(cause)
        self._workers.remove(worker)
        _end(worker, hangs=hangs)
        if worker.call is not None and worker.call.item is not None:
            item = worker.call.item
            item.workers_lost += 1
            if item.workers_lost >= MAX_WORKERS_LOST:
                ids = ", ".join(prompt.problem.id for prompt in item.prompts)
                raise PoolError(
                    f"{item.workers_lost} sampling workers were lost over the same prompts ({ids}): {cause}"
                )
            self._urgent.appendleft(item)
        if len(self._in_a_row) <= self.settings.max_restarts:
            self._wanted += 1
            then = "another takes its place"
        else:
            then = f"{len(self._workers)} are left"
        log.warning("a sampling worker was lost, %s; %s", cause, then)
        if not self._workers and not (self._begun and self._wanted):
            raise PoolError(
                f"no sampling worker is left; {len(self._in_a_row)} were lost in a row. The first: {self._in_a_row[0]}"
            )


def _where(worker: PoolWorker) -> tuple[str, int, Path]:
    return ray.get_runtime_context().get_node_id(), os.getpid(), worker.scratch.path


def _answer(handle: Any) -> tuple[Any, Complaint]:
    """What a call returned, or why it did not."""
    try:
        return ray.get(handle, timeout=CLOSE_S), None
    except RayTaskError as error:
        return None, f"it failed: {error.cause!r}"
    except RayError as error:
        lines = str(error).splitlines()
        # Of an actor that died, the first line says how; what follows is Ray's advice, or a traceback and its cause.
        cause = lines[-1] if isinstance(error, ActorDiedError) and error.actor_init_failed else lines[0]
        return None, f"it died or its answer was lost: {cause}"


def _acknowledged(worker: _Worker, ref: AdapterRef, found: str) -> Complaint:
    if found != ref.sha256:
        return f"what it loaded as {ref.key} has digest {found[:12]}…, not {ref.sha256[:12]}…"
    worker.loaded.add(ref.key)
    return None


def _sampled_by(worker: _Worker, item: WorkItem) -> Any:
    """The handle of the groups that the worker will answer with."""
    request = item.request
    if item.before is None:
        return worker.actor.generate.remote(item.prompts, request.sampling, request.adapter, item.seeds)
    return worker.actor.extend.remote(item.before.groups, request.sampling, request.adapter, item.seeds)


def _end(worker: _Worker, *, hangs: bool = False) -> None:
    """End an actor. One that hangs may be stopped, and a stopped process hears the kernel alone."""
    if hangs and ray.wait([worker.where], timeout=0)[0]:
        node, pid, files = _answer(worker.where)[0] or ("", 0, Path())
        if node == ray.get_runtime_context().get_node_id():
            end_process(pid, files)
        elif node:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_process).remote(pid, files)
    ray.kill(worker.actor)


def end_process(pid: int, files: Path) -> None:
    """SIGKILL to a process of Ray's on this machine, unless it is gone and its number another's; its files go too."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if "ray::" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(files, ignore_errors=True)
