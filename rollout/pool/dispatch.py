"""Waiting work items and workers with room → which worker takes which item."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from rollout.work_items import WorkItem

MOST_ITEMS = 64
"""Most work items that a worker has at once: each keeps one of its threads waiting."""


class Candidate(Protocol):
    """A worker that could take work now."""

    @property
    def items(self) -> Sequence[WorkItem]:
        """The items that it is sampling."""
        ...


T = TypeVar("T", bound=Candidate)


def completions_of(item: WorkItem) -> int:
    return len(item.prompts) * item.request.sampling.n


def deal(
    queues: Sequence[deque[WorkItem]], takers: Sequence[T], at_once: int, alone: Callable[[WorkItem], bool]
) -> Iterator[tuple[T, WorkItem]]:
    """Take items from the queues in order, and yield each with the worker that has the fewest completions. The caller
    must hand over each item before asking for the next.

    A worker takes items while it has fewer than `at_once` completions. An item that must be sampled `alone` goes to an
    idle worker, which gets no other item; the items behind it wait until there is such a worker.
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
    """The first item that can be started, with the queue it is in."""
    return next(((queue, item) for queue in queues for item in queue if item.ready), None)
