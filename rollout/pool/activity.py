"""The workers' state over time → how busy they were, how long work waited, and how long the tail of a step was."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field

from rollout.work_items import WorkItem


@dataclass(eq=False)
class Activity:
    """Counts from the last `mark`. `clock` is in seconds."""

    workers: int
    """How many workers there should be now."""
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    _seen: float = field(init=False)
    """When the fields below were last updated."""
    _sampling: frozenset[Hashable] = field(default=frozenset(), init=False)
    _waits: bool = field(default=False, init=False)
    _busy_s: dict[Hashable, float] = field(default_factory=dict, init=False)
    """Seconds that each worker has sampled since `mark`, also one that is lost; a worker that has not is left out."""
    _there_s: float = field(default=0.0, init=False)
    """Worker-seconds that should have been available."""
    _tail_s: float = field(default=0.0, init=False)
    _asked: dict[WorkItem, float] = field(default_factory=dict, init=False)
    _queue_s: list[float] = field(default_factory=list, init=False)
    """How long each started item had waited."""

    def __post_init__(self) -> None:
        self._since = self._seen = self.clock()

    def mark(self) -> None:
        """Start counting from now."""
        self._advance()
        self._since = self._seen
        self._busy_s = {}
        self._there_s = self._tail_s = 0.0
        self._queue_s = []

    def see(self, sampling: Collection[Hashable], *, waits: bool) -> None:
        """Record the state from now on: the workers that sample, and whether work is waiting."""
        self._advance()
        self._sampling, self._waits = frozenset(sampling), waits

    def resize(self, workers: int) -> None:
        """Set how many workers there should be from now on."""
        self._advance()
        self.workers = workers

    def asked(self, items: Iterable[WorkItem]) -> None:
        """Note new work that can be started now; a segment that waits for the one before it cannot."""
        self._asked |= dict.fromkeys((item for item in items if item.ready), self.clock())

    def begun(self, item: WorkItem) -> None:
        """Note that a worker has the item. The wait of a lost item that is handed out again is counted only once."""
        if (at := self._asked.pop(item, None)) is not None:
            self._queue_s.append(self.clock() - at)

    def figures(self, members: Collection[Hashable]) -> dict[str, float]:
        """Figures since `mark`: the mean and the smallest fraction of time that workers sampled; the mean seconds that
        an item waited for a worker, if any was started; and the seconds in which some worker was idle because others
        had the last items. `members` are the current workers."""
        self._advance()
        passed_s = max(self._seen - self._since, 1e-9)
        figures = {
            "busy_frac": sum(self._busy_s.values()) / max(self._there_s, 1e-9),
            "busy_min_frac": min((self._busy_s.get(member, 0.0) for member in members), default=0.0) / passed_s,
            "tail_s": self._tail_s,
        }
        if self._queue_s:
            figures["queue_s"] = sum(self._queue_s) / len(self._queue_s)
        return figures

    def _advance(self) -> None:
        now = self.clock()
        passed_s, self._seen = now - self._seen, now
        self._there_s += passed_s * self.workers
        for worker in self._sampling:
            self._busy_s[worker] = self._busy_s.get(worker, 0.0) + passed_s
        if 0 < len(self._sampling) < self.workers and not self._waits:
            self._tail_s += passed_s
