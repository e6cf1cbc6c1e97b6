"""Prompts → completions, by workers on one or many machines: Ray actors, each with an in-process engine inside.

A request is split into work items of a few prompts (`rollout/work_items.py`). Each is sampled as one batch; on a GPU a
worker samples several side by side. A thread watches the workers: one that dies, hangs, fails or answers from the wrong
adapter is replaced, and its work items are assigned again. No prompt is lost or counted twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from rollout.adapters import AdapterError
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, ExtendingEngine, PoolError, PoolSettings
from rollout.pool.activity import Activity
from rollout.pool.cluster import Size, machines, placement_of
from rollout.pool.dispatch import deal
from rollout.pool.incidents import Incidents
from rollout.pool.local_cluster import (
    SILENT,
    SILENT_S,
    Silence,
    faults_of_ray,
    in_background,
    join_ray,
    leave_ray,
    start_ray,
    within,
)
from rollout.pool.scratch import WORKERS, ScratchDirectory, remove_left
from rollout.pool.space import SCRATCH, FreeSpace, lacks, store_bytes, too_small
from rollout.pool.versions import Version, WholeModel, version_of
from rollout.pool.worker_handle import Call, Complaint, WorkerHandle, answer_of, end_all
from rollout.types import AdapterRef, Prompt, RolloutGroup
from rollout.vllm import start_engine
from rollout.work_items import PromptBatch, Request, WorkItem, extended, split

log = logging.getLogger(__name__)

# How soon a new call is waited for, a late one noticed and a signal handled.
POLL_S = 0.05
# How long workers may take to exit by themselves when the pool is closed.
CLOSE_S = 5.0
# How often an idle worker is pinged, and how long it may take to answer.
PING_EVERY_S, PING_S = 5.0, 60.0


@dataclass(eq=False)
class RayPool:
    """A `PoolEngine`. `close` ends the workers, and the local cluster if it was started here."""

    engine: EngineSettings
    settings: PoolSettings
    make_engine: Callable[[EngineSettings], ExtendingEngine] = start_engine
    lost: int = field(default=0, init=False)
    """Number of workers lost."""
    _workers: list[WorkerHandle] = field(default_factory=list, init=False)
    _versions: dict[str, Version] = field(default_factory=dict, init=False)
    """Key → version that all workers must have."""
    _urgent: deque[WorkItem] = field(default_factory=deque, init=False)
    _waiting: deque[WorkItem] = field(default_factory=deque, init=False)
    _incidents: Incidents = field(default_factory=Incidents, init=False)
    _activity: Activity = field(init=False)
    _begun: bool = field(default=False, init=False)
    """Whether a worker has ever started."""
    _start_at: float = field(default=0.0, init=False)
    """Missing workers are not replaced before this time."""
    _size: Size = field(init=False)
    _closing: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Must be held to change any of the above."""
    _supervision: Future[None] | None = field(default=None, init=False)
    _turned: float = field(default_factory=time.monotonic, init=False)
    """When the supervision was last heard of: it hangs if Ray does."""
    _silence: Silence = field(default_factory=Silence, init=False)
    _news: threading.Event = field(default_factory=threading.Event, init=False)
    """Set after each turn of the supervision."""
    _scratch: ScratchDirectory | None = field(default=None, init=False)
    """Files of the connection to Ray, if this pool opened it."""

    def __post_init__(self) -> None:
        of = self.settings
        self._size = Size(of.workers, of.cpus_per_worker, of.gpus_per_worker)
        self._activity = Activity(self._size.workers)
        with ExitStack() as undone:
            undone.callback(self.close)
            self._connect()
            self._size.look()
            self._activity.resize(self._size.workers)
            self._workers = [self._start_worker() for _ in range(self._size.workers)]
            self._supervision = in_background(self._supervise)
            # The others may start later, and then catch up on what they have missed.
            self._wait_until(lambda: any(worker.ready for worker in self._workers))
            undone.pop_all()

    @property
    def alive(self) -> int:
        """Number of workers that are sampling or could be."""
        return sum(worker.ready for worker in [*self._workers])

    def where(self) -> str:
        """See `PoolEngine.where`."""
        addresses = {machine.id: machine.address for machine in within(machines)}
        with self._locked():
            nodes = [worker.find() for worker in self._workers]
        return placement_of(nodes, addresses, self.settings.gpus_per_worker)

    def mark(self) -> None:
        """See `PoolEngine.mark`."""
        with self._locked():
            self._activity.mark()

    def figures(self) -> dict[str, float]:
        """See `PoolEngine.figures`. Empty if Ray hangs: whoever samples next is told."""
        with suppress(PoolError), self._locked():
            return self._activity.figures(self._workers)
        return {}

    def submit(self, batch: PromptBatch) -> Request:
        """See `PoolEngine.submit`."""
        request = split(batch, batch.prompts_per_piece or self.settings.prompts_per_piece)
        return self._queued(request, self._urgent if batch.urgent else self._waiting)

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `PoolEngine.extend`."""
        return self._queued(extended(request, sampling, adapter), self._waiting)

    def _queued(self, request: Request, queue: deque[WorkItem]) -> Request:
        if request.adapter is not None and request.adapter.key not in self._versions:
            raise AdapterError(f"{request.adapter.key} is not loaded; loaded are {sorted(self._versions) or 'none'}")
        with self._locked():
            queue.extend(request.items)
            self._activity.asked(request.items)
            self._assign()
        return request

    def collect(self, request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        """See `PoolEngine.collect`."""
        return request.groups() if self._wait_until(lambda: request.done, timeout_s) else None

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`. Takes precedence over everything that was submitted but has not begun."""
        request = self.submit(PromptBatch(prompts, sampling, adapter, seeds, urgent=True))
        self._wait_until(lambda: request.done)
        return request.groups()

    @faults_of_ray()
    def load_adapter(self, ref: AdapterRef) -> None:
        """See `Engine.load_adapter`. Every worker has verified and acknowledged the files before its next work item;
        nothing waits for workers that are busy."""
        if ref.key in self._versions:
            raise AdapterError(f"{ref.key} is already loaded: names are never reused")
        making, limit_s = in_background(partial(version_of, ref)), self.settings.start_timeout_s
        # The supervision learns of a store that has stopped, long before a large version could be given up.
        if not (wait([making], POLL_S).done or self._wait_until(making.done, limit_s)):
            raise PoolError(SILENT.format(limit_s))
        with self._locked():
            if isinstance(version := making.result(), WholeModel):
                self._versions.clear()  # it replaces the previous one in every engine
            self._versions[ref.key] = version
            self._assign()

    def unload_adapter(self, ref: AdapterRef) -> None:
        with self._locked():
            self._versions.pop(ref.key, None)
            self._assign()

    def sleep(self) -> None:
        """Nothing to do here or in `wake`: workers share no memory with the learner."""

    def wake(self) -> None: ...

    def close(self) -> None:
        self._closing = True  # without the lock, which a supervision that hangs may hold
        if self._supervision is not None:
            wait([self._supervision], CLOSE_S)
        if ray.is_initialized():
            with suppress(RayError, PoolError):  # if Ray itself failed, report its first error
                within(partial(end_all, self._workers, CLOSE_S), 2 * CLOSE_S)
            self._workers = []
        if self._scratch is not None:
            leave_ray()
            remove_left(WORKERS)  # of workers that died with their Ray
            self._scratch.remove()

    def _connect(self) -> None:
        address, sent, workers = self.settings.address, self.settings.sent, self.settings.workers
        if ray.is_initialized():
            return  # whoever made this pool opened it, and will close it
        self._scratch = ScratchDirectory.make(SCRATCH)
        if address is None:
            assert workers is not None
            room = FreeSpace.here()
            if (why := lacks(sent, workers, room)) is not None:
                raise PoolError(why)
            store = store_bytes(sent, workers, room)
            start_ray(workers * self.settings.cpus_per_worker, self._scratch.path, self.settings.cards, store)
        else:
            join_ray(address)
            for machine in machines():
                if (why := too_small(sent, machine.store, machine.address)) is not None:
                    raise PoolError(why)

    def _start_worker(self) -> WorkerHandle:
        """Create a worker, which starts its engine."""
        settings, together = self.settings, self.settings.completions_at_once > 1
        worker = WorkerHandle.placed(settings.cpus_per_worker, settings.gpus_per_worker, together=together)

        def started(_: None) -> Complaint:
            worker.ready = self._begun = True
            if len(self._workers) == self._size.workers and all(one.ready for one in self._workers):
                log.info("all %d sampling workers are there", len(self._workers))
            return None

        handle = worker.actor.start.remote(self.engine, self.make_engine, together)
        worker.call = Call(handle=handle, deadline=self._by(self.settings.start_timeout_s), accept=started)
        return worker

    def _by(self, timeout_s: float) -> float:
        return time.monotonic() + timeout_s

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock inside the block. Raises `PoolError` if the supervision keeps it, because Ray hangs."""
        if not self._lock.acquire(timeout=SILENT_S):
            raise PoolError(SILENT.format(SILENT_S))
        try:
            yield
        finally:
            self._lock.release()

    def _wait_until(self, true: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
        """Wait for a condition, and return whether it held in time. Raises what ended the supervision, or `PoolError`
        if that hangs, perhaps with the lock held."""
        assert self._supervision is not None
        deadline = time.monotonic() + timeout_s
        while True:
            if self._lock.acquire(timeout=POLL_S):
                try:
                    if true():
                        return True
                finally:
                    self._lock.release()
            if self._supervision.done():
                self._supervision.result()
                raise PoolError("the pool was closed")
            if self._silence.seconds(self._turned) > SILENT_S:
                raise PoolError(SILENT.format(SILENT_S))
            if time.monotonic() > deadline:
                return False
            self._news.wait(POLL_S)
            self._news.clear()

    @faults_of_ray()
    def _supervise(self) -> None:
        """Hand out work and handle answers until the pool is closed. Raises `PoolError` when it cannot go on."""
        while not self._closing and threading.main_thread().is_alive():
            self._turned = time.monotonic()
            with self._lock:
                calls = {call.handle: (worker, call) for worker in self._workers for call in worker.calls}
            if not calls:
                time.sleep(POLL_S)
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=POLL_S) if calls else ([], [])
            if ready:  # fetch all other answers too: a pass over thousands of workers takes ms
                ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            answers = {}
            for handle in ready:
                answers[handle] = answer_of(handle)
                self._turned = time.monotonic()
            with self._lock:
                for handle, (worker, call) in calls.items():
                    if worker not in self._workers:
                        continue  # lost because of another call, or with its machine
                    if handle in answers:
                        self._handle_answer(worker, call, *answers[handle])
                    elif call.deadline < time.monotonic():
                        why = "it did not answer in time" if worker.find() else self._size.why_no_place()
                        self._give_up(worker, why, hangs=True)
                if self._size.look_again():
                    self._resize()
                # Before any worker has started, whatever stopped one would stop the next.
                if (self._begun or not self.lost) and time.monotonic() >= self._start_at:
                    self._workers += [self._start_worker() for _ in range(self._size.workers - len(self._workers))]
                self._assign()
                if waiting := sum(worker.waits_untold() for worker in self._workers):
                    self._size.tell(waiting, self.settings.start_timeout_s)
            self._news.set()

    def _resize(self) -> None:
        """Adapt to machines that came or went: drop unplaced workers beyond what there is room for now."""
        self._activity.resize(self._size.workers)
        surplus = max(0, len(self._workers) - self._size.workers)
        for worker in [one for one in self._workers if one.find() is None][:surplus]:
            self._workers.remove(worker)
            worker.end()

    @faults_of_ray()
    def _assign(self) -> None:
        """Give every worker with room its next request."""
        queues = (self._urgent, self._waiting)
        idle = not any(item.ready for queue in queues for item in queue)
        for worker in self._workers:
            if worker.call is None:
                worker.call = self._next_call(worker, idle)
        # Versions first, so that no item reaches a worker without its adapter.
        takers = [one for one in self._workers if one.call is None and one.loaded >= self._versions.keys()]
        for worker, item in deal(queues, takers, self.settings.completions_at_once, self._incidents.suspects):
            self._activity.begun(item)
            worker.samples.append(worker.sample(item, self._by(self.settings.piece_timeout_s)))
        sampling = [worker for worker in self._workers if worker.samples]
        self._activity.see(sampling, waits=any(item.ready for queue in queues for item in queue))

    def _next_call(self, worker: WorkerHandle, idle: bool) -> Call | None:
        """A worker's next request besides sampling; none during sampling if it samples one item at a time."""
        if worker.samples and self.settings.completions_at_once == 1:
            return None
        for key, version in self._versions.items():
            if key not in worker.loaded:
                return version.call(worker, self._by(self.settings.start_timeout_s)) or self._ping(worker)
        for key in worker.loaded - self._versions.keys():
            worker.loaded.remove(key)
            handle = worker.actor.unload_adapter.remote(key)
            return Call(handle=handle, deadline=self._by(self.settings.start_timeout_s))
        return self._ping(worker) if idle and not worker.samples else None

    def _ping(self, worker: WorkerHandle) -> Call | None:
        """Ping an idle worker if it has not been heard from for a while."""
        if time.monotonic() - worker.heard > PING_EVERY_S:
            return Call(handle=worker.actor.ping.remote(), deadline=self._by(PING_S))
        return None

    def _handle_answer(self, worker: WorkerHandle, call: Call, answer: Any, complaint: Complaint) -> None:
        """Handle the answer of a finished call."""
        if (complaint := complaint or call.accept(answer)) is not None:
            self._give_up(worker, complaint)
            return
        worker.answered(call)
        if call.item is not None:
            self._incidents.sampled(call.item)

    def _give_up(self, worker: WorkerHandle, cause: str, *, hangs: bool = False) -> None:
        """Give up a worker, and with it all others on its machine if that is gone; replacements start after a pause.

        Raises `PoolError` when prompts are to blame, or when no worker is left and starting another is hopeless.
        """
        worker.find()
        nodes = {machine.id for machine in machines()}
        gone = worker.node is not None and worker.node not in nodes
        with_it = [one for one in self._workers if one is not worker and gone and one.find() == worker.node]
        items = [item for one in (worker, *with_it) for item in self._drop(one, cause, hangs=hangs)]
        if self._size.look():
            self._resize()
        if time.monotonic() >= self._start_at:
            # Do not postpone a pending start: with thousands of workers, losses are more frequent than the pauses.
            self._start_at = self._by(self._incidents.pause_s())
        pause_s = max(0.0, self._start_at - time.monotonic())
        log.warning(
            "%d sampling worker%s lost, %s; %d of %d are left, others are started %s",
            *(1 + len(with_it), "s were" if with_it else " was", cause, len(self._workers), self._size.workers),
            f"in {pause_s:.0f} s" if pause_s else "now",
        )
        for item in items:
            if blamed := self._incidents.blames(item, nodes):
                ids = ", ".join(prompt.problem.id for prompt in item.prompts)
                raise PoolError(
                    f"workers were lost {len(blamed)} times while they sampled the same prompts ({ids}): {cause}"
                )
        in_a_row = self._incidents.in_a_row
        if not self._workers and (not self._begun or len(in_a_row) > self.settings.max_restarts):
            failures = "1 failure" if len(in_a_row) == 1 else f"{len(in_a_row)} failures in a row"
            raise PoolError(
                f"no sampling worker is left, after {failures} with nothing sampled in between; the first: "
                f"{in_a_row[0]}"
            )

    def _drop(self, worker: WorkerHandle, cause: str, *, hangs: bool) -> list[WorkItem]:
        """Kill a worker and requeue its items; return those that it had begun."""
        begun = worker.begun()
        self.lost += 1
        self._incidents.lost(worker.node, cause, begun)
        self._workers.remove(worker)
        for version in self._versions.values():
            version.forget(worker)
        worker.end(hangs=hangs)
        self._urgent.extendleft(reversed(worker.items))
        return begun
