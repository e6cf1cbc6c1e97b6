"""One request for completions → work items to hand out → its groups in order, whoever sampled them and whenever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from rollout.config import SamplingConfig
from rollout.segments import goes_on
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup

LARGEST_PIECE = 16
"""Prompts of a work item beyond which a longer batch gains little, and its longest completion holds up more."""


def piece_size(prompts: int, workers: int) -> int:
    """Prompts of a work item where so many are asked for at once: even shares for all workers, in as few turns as items
    of `LARGEST_PIECE` take, and smaller where that leaves a worker without one; at least 1."""
    turns = max(1, pieces_of(prompts, workers * LARGEST_PIECE))
    even = max(1, pieces_of(prompts, workers * turns))
    return even if pieces_of(prompts, even) >= workers else max(1, prompts // workers)


def pieces_of(prompts: int, prompts_per_piece: int) -> int:
    """How many work items a request for so many prompts makes."""
    return -(-prompts // prompts_per_piece)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """What is asked for at once: `sampling.n` completions of each prompt, from one version."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig
    adapter: AdapterRef | None
    seeds: Sequence[str]
    """One a prompt: see `Engine.generate`."""
    _: KW_ONLY
    urgent: bool = False
    """Whether it goes before what waits."""
    prompts_per_piece: int | None = None
    """What workers of a pool are given at a time, where that is not as set."""


@dataclass(eq=False)
class Request:
    """A batch that was asked for, and what of it is there."""

    sampling: SamplingConfig
    adapter: AdapterRef | None
    items: list[WorkItem] = field(default_factory=list, init=False)

    @property
    def done(self) -> bool:
        return all(item.groups is not None for item in self.items)

    def groups(self) -> list[RolloutGroup]:
        """One a prompt, in the order of the prompts; to be called when all is done."""
        assert self.done
        return [group for item in self.items for group in item.groups or ()]


@dataclass(eq=False)
class WorkItem:
    """Consecutive prompts of a request, sampled as one batch by one worker.

    On the CPU a completion is a function of its batch too: requests are split by number alone, so that neither the
    workers' number nor their speed changes one.
    """

    request: Request
    prompts: Sequence[Prompt]
    seeds: Sequence[str]
    before: WorkItem | None = None
    """What it goes on with."""
    groups: Sequence[RolloutGroup] | None = field(default=None, init=False)
    """The first complete answer; a work item has one, however often it was given out."""

    @property
    def ready(self) -> bool:
        """Whether it can be begun."""
        return self.before is None or self.before.groups is not None

    def take(self, groups: Sequence[RolloutGroup]) -> str | None:
        """Keep this answer, or say what is wrong with it and keep nothing."""
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
    """A request in work items of `prompts_per_item`, the last one smaller."""
    request = Request(batch.sampling, batch.adapter)
    for start in range(0, len(batch.prompts), prompts_per_item):
        end = start + prompts_per_item
        request.items.append(WorkItem(request, batch.prompts[start:end], batch.seeds[start:end]))
    return request


def extended(request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
    """A request to go on with what another leaves unfinished, in the same work items."""
    more = Request(sampling, adapter)
    more.items += [WorkItem(more, item.prompts, item.seeds, item) for item in request.items]
    return more
