"""Which worker gets which work item, worked out by hand."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rollout.config import SamplingConfig
from rollout.pool.dispatch import MOST_ITEMS, completions_of, deal
from rollout.types import Problem, Prompt
from rollout.work_items import PromptBatch, WorkItem, extended, split

SAMPLES = 4


@dataclass
class Worker:
    items: list[WorkItem] = field(default_factory=list)


def some(prompts: int, per_item: int = 1) -> deque[WorkItem]:
    asked = [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(1,)) for i in range(prompts)]
    return deque(split(PromptBatch(asked, SamplingConfig(n=SAMPLES), None, [""] * prompts), per_item).items)


def dealt(
    queues: list[deque[WorkItem]], workers: list[Worker], at_once: int, suspects: tuple[WorkItem, ...] = ()
) -> None:
    for worker, item in deal(queues, workers, at_once, suspects.__contains__):
        worker.items.append(item)


def test_one_at_a_time_each_free_worker_takes_the_next() -> None:
    waiting = some(5)
    items, workers = list(waiting), [Worker(), Worker(), Worker()]
    workers[1].items.append(some(1)[0])
    dealt([waiting], workers, 1)
    assert (workers[0].items, workers[2].items) == (items[:1], items[1:2])
    assert len(workers[1].items) == 1
    assert list(waiting) == items[2:]


def test_several_go_to_the_worker_with_the_fewest_completions() -> None:
    """Room for 12 completions: items of 4 are dealt in turn; an item of 8 is accepted by a worker with fewer than
    12."""
    waiting, workers = some(5), [Worker(), Worker()]
    workers[0].items.append(some(2, 2)[0])
    items = list(waiting)
    dealt([waiting], workers, 12)
    assert workers[1].items == [items[0], items[1], items[3]]
    assert workers[0].items[1:] == [items[2]]
    assert list(waiting) == items[4:]
    workers[1].items.pop()
    dealt([some(2, 2), waiting], workers, 12)
    assert [completions_of(item) for item in workers[1].items] == [4, 4, 8]
    assert list(waiting) == items[4:], "16 completions are there now"


def test_urgent_items_go_first_and_unready_ones_not_at_all() -> None:
    """Items that wait for an earlier segment are not dealt at all."""
    urgent, waiting = some(1), some(1)
    later = deque(extended(some(1)[0].request, SamplingConfig(n=SAMPLES), None).items)
    first, second = urgent[0], waiting[0]
    worker = Worker()
    dealt([later, urgent, waiting], [worker], 64)
    assert worker.items == [first, second]
    assert len(later) == 1


def test_what_is_suspected_is_sampled_alone() -> None:
    waiting = some(4)
    items, workers = list(waiting), [Worker(), Worker([some(1)[0]])]
    suspects = (items[0], items[2])
    dealt([waiting], workers, 64, suspects)
    assert workers[0].items == [items[0]]
    # The other worker may take more. The next suspect, and all items behind it, wait until a worker is idle.
    assert workers[1].items[1:] == [items[1]]
    workers[1].items.clear()
    dealt([waiting], workers, 64, suspects)
    assert workers[1].items == [items[2]]
    workers[0].items.clear()
    dealt([waiting], workers, 64, suspects)
    assert workers[0].items == [items[3]]


def test_no_worker_has_more_items_than_threads() -> None:
    waiting, worker = some(MOST_ITEMS + 2), Worker()
    dealt([waiting], [worker], 10**6)
    assert (len(worker.items), len(waiting)) == (MOST_ITEMS, 2)
