"""Work items that wait and workers that have room → who takes what."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from rollout.work_items import WorkItem

MOST_ITEMS = 64
"""That a worker has at once: each keeps a thread of it waiting."""


class Taker(Protocol):
    """A worker that could be given work now."""

    @property
    def items(self) -> Sequence[WorkItem]:
        """What it samples."""
        ...


T = TypeVar("T", bound=Taker)


def completions_of(item: WorkItem) -> int:
    return len(item.prompts) * item.request.sampling.n


def deal(
    queues: Sequence[deque[WorkItem]], takers: Sequence[T], at_once: int, alone: Callable[[WorkItem], bool]
) -> Iterator[tuple[T, WorkItem]]:
    """Take items out of the queues, in their order, for the workers with the fewest completions; they are to have each
    before the next is taken.

    A worker takes an item while it has fewer than `at_once` completions. An item that is to be `alone` goes to a worker
    that has nothing, which gets no other; until there is one, those behind it wait.
    """

    def load(taker: T) -> int:
        return sum(map(completions_of, taker.items))

    def has_room(taker: T) -> bool:
        return load(taker) < at_once and len(taker.items) < MOST_ITEMS and not any(map(alone, taker.items))

    if _first(queues) is None:
        return
    heap = [(load(taker), place, taker) for place, taker in enumerate(takers) if has_room(taker)]
    heapq.heapify(heap)
    while heap and (found := _first(queues)) is not None:
        queue, item = found
        if heap[0][0] and alone(item):
            return
        _, place, taker = heapq.heappop(heap)
        queue.remove(item)
        yield taker, item
        if has_room(taker):
            heapq.heappush(heap, (load(taker), place, taker))


def _first(queues: Sequence[deque[WorkItem]]) -> tuple[deque[WorkItem], WorkItem] | None:
    """The first item that can be begun, and where it waits."""
    return next(((queue, item) for queue in queues for item in queue if item.ready), None)
