"""What the workers do from moment to moment → how busy they were, how long work waited, and how long its tail was."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field

from rollout.work_items import WorkItem


@dataclass(eq=False)
class Activity:
    """Counted since `mark`. `clock` is in seconds."""

    workers: int
    """As many as there should be now."""
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    _seen: float = field(init=False)
    """When what is below was last brought up to date."""
    _sampling: frozenset[Hashable] = field(default=frozenset(), init=False)
    _waits: bool = field(default=False, init=False)
    _busy_s: dict[Hashable, float] = field(default_factory=dict, init=False)
    """How long each worker of now, and each that was lost since `mark`, has sampled."""
    _there_s: float = field(default=0.0, init=False)
    """Worker-seconds that there should have been."""
    _tail_s: float = field(default=0.0, init=False)
    _asked: dict[WorkItem, float] = field(default_factory=dict, init=False)
    _queue_s: list[float] = field(default_factory=list, init=False)
    """How long each item that was begun had waited."""

    def __post_init__(self) -> None:
        self._since = self._seen = self.clock()

    def mark(self) -> None:
        """Count from now on."""
        self._advance()
        self._since = self._seen
        self._busy_s = dict.fromkeys(self._busy_s, 0.0)
        self._there_s = self._tail_s = 0.0
        self._queue_s = []

    def see(self, members: Iterable[Hashable], sampling: Collection[Hashable], *, waits: bool) -> None:
        """From now on these workers are there, those of them sample, and work waits for a worker or not."""
        self._advance()
        self._sampling, self._waits = frozenset(sampling), waits
        for member in members:
            self._busy_s.setdefault(member, 0.0)

    def resize(self, workers: int) -> None:
        """From now on there should be so many."""
        self._advance()
        self.workers = workers

    def asked(self, items: Iterable[WorkItem]) -> None:
        """Work has come that can be begun now; a segment that waits for the one before it cannot."""
        self._asked |= dict.fromkeys((item for item in items if item.ready), self.clock())

    def begun(self, item: WorkItem) -> None:
        """A worker has it. What was lost and is given out again has waited once."""
        if (at := self._asked.pop(item, None)) is not None:
            self._queue_s.append(self.clock() - at)

    def figures(self, members: Collection[Hashable]) -> dict[str, float]:
        """Since `mark`: the mean and the least share of the time that workers sampled; mean seconds that an item waited
        for a worker, where one was begun; and seconds in which some worker had nothing to do because the last items
        were at others. `members` are the workers of now."""
        self._advance()
        passed_s = max(self._seen - self._since, 1e-9)
        figures = {
            "busy_frac": sum(self._busy_s.values()) / max(self._there_s, 1e-9),
            "busy_min_frac": min((self._busy_s.get(member, 0.0) for member in members), default=0.0) / passed_s,
            "tail_s": self._tail_s,
        }
        if self._queue_s:
            figures["queue_s"] = sum(self._queue_s) / len(self._queue_s)
        self._busy_s = {member: seconds for member, seconds in self._busy_s.items() if member in members}
        return figures

    def _advance(self) -> None:
        now = self.clock()
        passed_s, self._seen = now - self._seen, now
        self._there_s += passed_s * self.workers
        for worker in self._sampling:
            self._busy_s[worker] = self._busy_s.get(worker, 0.0) + passed_s
        if 0 < len(self._sampling) < self.workers and not self._waits:
            self._tail_s += passed_s
