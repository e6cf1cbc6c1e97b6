"""One request for completions → work items to hand out → its groups in order, whoever sampled them and whenever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from rollout.config import SamplingConfig
from rollout.segments import goes_on
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup

LARGEST_PIECE = 16
"""Largest number of prompts per work item: larger batches gain little and wait longer for their longest completion."""


def piece_size(prompts: int, workers: int) -> int:
    """Prompts per work item for a request of `prompts` prompts: equal shares for all workers, in as few turns as items
    of at most `LARGEST_PIECE` allow, and smaller if a worker would otherwise get none; at least 1."""
    turns = max(1, pieces_of(prompts, workers * LARGEST_PIECE))
    even = max(1, pieces_of(prompts, workers * turns))
    return even if pieces_of(prompts, even) >= workers else max(1, prompts // workers)


def pieces_of(prompts: int, prompts_per_piece: int) -> int:
    """Number of work items in a request for this many prompts."""
    return -(-prompts // prompts_per_piece)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """One request's input: `sampling.n` completions for each prompt, from one version."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig
    adapter: AdapterRef | None
    seeds: Sequence[str]
    """One per prompt: see `Engine.generate`."""
    _: KW_ONLY
    urgent: bool = False
    """Whether it goes ahead of waiting requests."""
    prompts_per_piece: int | None = None
    """Overrides the pool's number of prompts per work item."""


@dataclass(eq=False)
class Request:
    """A requested batch and the answers received so far."""

    sampling: SamplingConfig
    adapter: AdapterRef | None
    items: list[WorkItem] = field(default_factory=list, init=False)

    @property
    def done(self) -> bool:
        return all(item.groups is not None for item in self.items)

    def groups(self) -> list[RolloutGroup]:
        """The groups, one per prompt in order; call only when all items are done."""
        assert self.done
        return [group for item in self.items for group in item.groups or ()]


@dataclass(eq=False)
class WorkItem:
    """Consecutive prompts of a request, sampled as one batch by one worker.

    On the CPU a completion also depends on its batch. Requests are therefore split by number of prompts only, so that
    neither the number nor the speed of the workers changes a completion.
    """

    request: Request
    prompts: Sequence[Prompt]
    seeds: Sequence[str]
    before: WorkItem | None = None
    """The item whose completions this one continues."""
    groups: Sequence[RolloutGroup] | None = field(default=None, init=False)
    """The first complete answer; later ones are ignored if the item was handed out more than once."""

    @property
    def ready(self) -> bool:
        """Whether it can be started."""
        return self.before is None or self.before.groups is not None

    def take(self, groups: Sequence[RolloutGroup]) -> str | None:
        """Keep this answer and return None, or return what is wrong with it and keep nothing."""
        request = self.request
        if [(group.prompt, len(group.completions)) for group in groups] != [
            (p, request.sampling.n) for p in self.prompts
        ]:
            return "it answered other prompts than it was asked"
        sampled = _completions(groups)
        if self.before is not None:
            pairs = list(zip(_completions(self.before.groups or ()), sampled, strict=True))
            if not all(goes_on(before, after, request.sampling.max_tokens) for before, after in pairs):
                return "it did not go on with what it was given"
            sampled = [after for before, after in pairs if after != before]
        asked = request.adapter.key if request.adapter else BASE
        if strangers := {completion.adapter for completion in sampled} - {asked}:
            return f"it sampled from {', '.join(sorted(strangers))} when asked for {asked}"
        self.groups = groups
        return None


def _completions(groups: Sequence[RolloutGroup]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def split(batch: PromptBatch, prompts_per_item: int) -> Request:
    """Split a batch into work items of `prompts_per_item` prompts; the last may be smaller."""
    request = Request(batch.sampling, batch.adapter)
    for start in range(0, len(batch.prompts), prompts_per_item):
        end = start + prompts_per_item
        request.items.append(WorkItem(request, batch.prompts[start:end], batch.seeds[start:end]))
    return request


def extended(request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
    """A request that continues what another leaves unfinished, in the same work items."""
    more = Request(sampling, adapter)
    more.items += [WorkItem(more, item.prompts, item.seeds, item) for item in request.items]
    return more
