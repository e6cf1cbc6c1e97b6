"""Requests → replies, through workers that may hang, crash or be killed at any moment.

Each worker has a short queue, so that it never waits for its next item; only the first of the queue is
being judged. When a worker dies, the item it was judging gets the failure and the rest of its queue goes to
other workers. When a worker is slow, idle ones take items from behind its current one, so that no item is
held up by another. A reply depends on nothing but its item, so judging an item twice is harmless.
"""

from __future__ import annotations

import logging
import selectors
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.types import Verdict
from rewards.workers import wire
from rewards.workers.processes import (
    CLOSE_LIMIT_S,
    START_LIMIT_S,
    ForkServerProcess,
    Worker,
    WorkersFailed,
    in_words,
)

QUEUE_ITEMS = 16
QUEUE_BYTES = 1 << 18
GRACE_S = 0.5
"""Seconds by which the grader's deadline follows the worker's own timer."""
SLOW_S = 0.2
CRASHES_PER_ITEM = 2
FORK_SERVER_RESTARTS = 3
MAX_FAILED_STARTS = 4

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class GradingCall:
    """The progress of one call: items waiting, replies received, and how many workers each item has brought down."""

    frames: Sequence[bytes]
    waiting: deque[int]
    replies: list[wire.Message | None]
    crashes: dict[int, int]
    open: int

    @classmethod
    def of(cls, frames: Sequence[bytes]) -> GradingCall:
        count = len(frames)
        return cls(frames, deque(range(count)), [None] * count, {}, count)

    def settle(self, index: int, reply: wire.Message) -> None:
        if self.replies[index] is None:
            self.replies[index] = reply
            self.open -= 1


class Pool:
    """Keeps workers between calls. Not thread-safe: the grader holds a lock around `run`."""

    def __init__(self, *, workers: int, timeout_s: float, settings: wire.Message) -> None:
        self._size = workers
        self._timeout_s = timeout_s
        self._settings = settings
        self._fork_server: ForkServerProcess | None = None
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self.restarts = 0
        self._reported: set[str] = set()
        self.abandoned = False
        """Set by a thread other than the one in `run`; `run` then raises `WorkersFailed`."""
        self._fork_server_restarts = 0
        self._failed_starts = 0

    def run(self, requests: Sequence[wire.Message]) -> list[wire.Message]:
        """Return one reply per request, in order. Failures are replies too, with verdict `timeout` or `error`."""
        batch = GradingCall.of([wire.encode({**request, "id": i}) for i, request in enumerate(requests)])
        self._fork_server_restarts = 0
        try:
            while batch.open:
                if self.abandoned:
                    raise WorkersFailed("the grader was closed while it graded")
                self._start_workers(batch)
                self._hand_out(batch)
                self._exchange(batch)
                self._enforce_limit()
        except BaseException:
            # An interrupt leaves replies in flight that no call waits for: start with new workers next time.
            self.close()
            raise
        self._clear_stolen()
        return [reply for reply in batch.replies if reply is not None]

    def close(self) -> None:
        for worker in list(self._workers):
            self._drop(worker)
        if self._fork_server is not None:
            self._fork_server.close()
            self._fork_server = None

    # -- workers -------------------------------------------------------------------------------------

    def _start_workers(self, batch: GradingCall) -> None:
        wanted = min(self._size, batch.open)
        while len(self._workers) < wanted:
            if self._fork_server is None:
                self._fork_server = ForkServerProcess(self._settings)
            try:
                worker = self._fork_server.spawn()
            except WorkersFailed:
                self._fork_server.close()
                self._fork_server = None
                self._fork_server_restarts += 1
                if self._fork_server_restarts >= FORK_SERVER_RESTARTS:
                    raise
                logger.warning("the grading processes died and are being started again")
                continue
            self._workers.append(worker)
            self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.connection)
        worker.close()

    def _clear_stolen(self) -> None:
        """Drop workers that are still busy with an item that another worker has answered, before the next call."""
        for worker in [w for w in self._workers if w.assigned]:
            self._kill(worker)
            self._drop(worker)

    def _kill(self, worker: Worker) -> None:
        worker.overdue_since = time.monotonic()
        if self._fork_server is not None:
            self._fork_server.kill(worker)

    # -- work ----------------------------------------------------------------------------------------

    def _hand_out(self, batch: GradingCall) -> None:
        for worker in [w for w in self._workers if w.ready]:
            size = len(worker.outgoing)
            while (
                batch.waiting
                and not worker.leaving
                and not worker.overdue
                and len(worker.assigned) < self._queue_length(batch)
                and size < QUEUE_BYTES
            ):
                index = batch.waiting.popleft()
                if batch.replies[index] is None:
                    size += self._assign(worker, index, batch)
            if not worker.assigned and not worker.leaving and not batch.waiting:
                self._steal_for(worker, batch)

    def _queue_length(self, batch: GradingCall) -> int:
        """Short queues near the end of a batch, so that workers finish together."""
        return max(1, min(QUEUE_ITEMS, len(batch.waiting) // self._size))

    def _assign(self, worker: Worker, index: int, batch: GradingCall) -> int:
        if not worker.assigned:
            worker.head_since = time.monotonic()
        worker.assigned.append(index)
        frame = batch.frames[index]
        worker.outgoing += frame
        self._selector.modify(worker.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)
        return len(frame)

    def _steal_for(self, idle: Worker, batch: GradingCall) -> None:
        """Give an idle worker one item that is queued behind a slow one."""
        now = time.monotonic()
        held = {worker.assigned[0] for worker in self._workers if worker.assigned}
        for worker in self._workers:
            if worker is idle or now - worker.head_since < SLOW_S:
                continue
            for index in list(worker.assigned)[1:]:
                if batch.replies[index] is None and index not in held:
                    self._assign(idle, index, batch)
                    return

    def _exchange(self, batch: GradingCall) -> None:
        for key, events in self._selector.select(self._patience()):
            worker: Worker = key.data
            if events & selectors.EVENT_READ and not self._read(worker, batch):
                self._handle_loss(worker, batch)
            elif events & selectors.EVENT_WRITE:
                self._write(worker)

    def _patience(self) -> float:
        """Seconds until the next check is due even if no worker sends anything."""
        now = time.monotonic()
        limit = self._timeout_s + GRACE_S
        due = [w.head_since + limit - now for w in self._workers if w.assigned and not w.overdue]
        some_idle = any(not w.assigned for w in self._workers)
        return max(0.0, min([*due, SLOW_S if some_idle else 1.0]))

    def _write(self, worker: Worker) -> None:
        try:
            sent = worker.connection.send(worker.outgoing)
        except BlockingIOError:
            return
        except OSError:
            worker.outgoing.clear()  # the worker is dead: reading from it will show that
            sent = 0
        del worker.outgoing[:sent]
        if not worker.outgoing:
            self._selector.modify(worker.connection, selectors.EVENT_READ, worker)

    def _read(self, worker: Worker, batch: GradingCall) -> bool:
        """Receive replies. Returns False if the worker is gone."""
        try:
            chunk = worker.connection.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        worker.incoming += chunk
        while (reply := wire.take(worker.incoming)) is not None:
            if "hello" in reply:
                worker.ready = True
                self._failed_starts = 0
                continue
            worker.assigned.popleft()
            worker.head_since = time.monotonic()
            worker.leaving = worker.leaving or bool(reply["leaving"])
            batch.settle(int(reply["id"]), reply)
        return bool(chunk)

    # -- failure -------------------------------------------------------------------------------------

    def _enforce_limit(self) -> None:
        limit = self._timeout_s + GRACE_S
        now = time.monotonic()
        for worker in self._workers:
            late = worker.assigned and now - worker.head_since > limit
            if worker.overdue_since is None:
                if late or (not worker.ready and now - worker.started > START_LIMIT_S):
                    self._kill(worker)
            elif self._fork_server is not None and now - worker.overdue_since > CLOSE_LIMIT_S:
                # The fork server does not respond (stopped, swapped out): end it, and its workers with it.
                self._fork_server.close()
                self._fork_server = None

    def _handle_loss(self, worker: Worker, batch: GradingCall) -> None:
        """Handle a worker that is gone: find out why, settle its current item, and requeue the rest."""
        code = worker.exit_code()
        self._drop(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise WorkersFailed(f"the grading workers die while they start: {in_words(code)}")
            return
        assigned = list(worker.assigned)
        if assigned and not worker.leaving:
            self.restarts += 1
            head = assigned[0]
            if worker.overdue or code == -signal.SIGALRM:  # the worker's own timer
                self._report("a worker ran over the time limit")
                batch.settle(head, _failure(Verdict.TIMEOUT, f"over the limit of {self._timeout_s:g} s"))
            else:
                self._report(f"a worker died, {in_words(code)},")
                batch.crashes[head] = batch.crashes.get(head, 0) + 1
                if batch.crashes[head] >= CRASHES_PER_ITEM:
                    crash = f"the grading worker crashed on this item: {in_words(code)}"
                    batch.settle(head, _failure(Verdict.ERROR, crash))
        batch.waiting.extendleft(i for i in reversed(assigned) if batch.replies[i] is None)

    def _report(self, what: str) -> None:
        if what not in self._reported:
            self._reported.add(what)
            logger.warning("%s and was replaced; further ones are counted in Grader.restarts, not reported", what)


def _failure(verdict: Verdict, detail: str) -> wire.Message:
    return {"verdict": verdict, "extracted": None, "detail": detail}
