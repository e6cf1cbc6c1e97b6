"""Prompts → rollouts, requested now and collected later: the seam between a run and its sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rl_engine.learner.ranks import Ranks
from rollout.config import SamplingConfig
from rollout.engine import Engine, EngineError, InFlight, StreamingEngine
from rollout.stopping import Stopped, StopRequest
from rollout.types import AdapterRef, RolloutGroup
from rollout.work_items import PromptBatch, Request, WorkItem, extended, split

Meanwhile = Callable[[Sequence[RolloutGroup]], None]


def wait(groups: Sequence[RolloutGroup]) -> None:
    """Do nothing with groups until all have arrived."""


class RolloutQueue(Protocol):
    """A run's sampler. Calls are collective: all ranks make them in the same order."""

    @property
    def engine(self) -> Engine:
        """The engine itself, for loading versions and for synchronous generation."""
        ...

    @property
    def has_all_groups(self) -> bool:
        """Whether `collect` returns all sampled groups on every rank, rather than only the rank's share."""
        ...

    def submit(self, batch: PromptBatch) -> Request:
        """Request one group per prompt."""
        ...

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """Continue the completions that `request` leaves unfinished, up to `sampling.max_tokens` tokens. The returned
        request is collected in place of `request`."""
        ...

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """Wait for the groups of a request, one per prompt, in order: all of them on every rank if the queue
        `has_all_groups`, otherwise this rank's share, as dealt by `Ranks.share`.

        `meanwhile` may be called with groups as they arrive, each at most once, while others are still being sampled.
        It must return quickly.
        Raises `Stopped` on a request to stop; unfinished groups are dropped.
        """
        ...

    def where(self) -> str | None:
        """Where the workers are, as text for the user; None without workers and on ranks other than the main one."""
        ...

    def mark(self) -> None:
        """Mark the beginning of a step: `metrics` counts from here."""
        ...

    def metrics(self) -> dict[str, float]:
        """The sampler's own metrics, on the main rank."""
        ...


def share(batch: PromptBatch, ranks: Ranks) -> PromptBatch:
    """This rank's share of a batch."""
    return replace(batch, prompts=ranks.share([*batch.prompts]), seeds=ranks.share([*batch.seeds]))


@dataclass(frozen=True, slots=True)
class LocalQueue:
    """An engine in this rank's process, with results that are reproducible bit for bit: each rank samples its share of
    a request as one batch when the request is collected."""

    engine: Engine
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def has_all_groups(self) -> bool:
        return False

    def submit(self, batch: PromptBatch) -> Request:
        """See `RolloutQueue.submit`. A request is one batch. Nothing is queued, so `urgent` has no effect: requests are
        sampled in the order in which they are collected."""
        mine = share(batch, self.ranks)
        return split(mine, max(1, len(mine.prompts)))

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`. Nothing has been sampled yet, so `adapter` samples everything in one go."""
        whole = Request(sampling, adapter)
        whole.items += [WorkItem(whole, item.prompts, item.seeds) for item in request.items]
        return whole

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """See `RolloutQueue.collect`. If only this rank is stopped, `together` tells the others."""
        with self.stop.raised():
            return [
                group
                for item in request.items
                for group in self.engine.generate(item.prompts, request.sampling, request.adapter, item.seeds)
            ]

    def where(self) -> str | None:
        return None

    def mark(self) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, slots=True)
class StreamingQueue:
    """An engine in this rank's process that does not work in batches: each group starts when it is requested, and is
    sampled alongside all others whenever any request is being collected."""

    engine: StreamingEngine
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)
    _going: dict[WorkItem, InFlight] = field(default_factory=dict, init=False)
    _later: list[WorkItem] = field(default_factory=list, init=False)
    """Continuations whose first part has not been sampled yet."""

    @property
    def has_all_groups(self) -> bool:
        return False

    def submit(self, batch: PromptBatch) -> Request:
        """See `RolloutQueue.submit`. A work item is one group; urgent ones are sampled alongside the rest."""
        request = split(share(batch, self.ranks), 1)
        for item in request.items:
            self._going[item] = self.engine.begin(item.prompts, batch.sampling, batch.adapter, item.seeds)
        return request

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`. A group continues as soon as its first part has been sampled."""
        more = extended(request, sampling, adapter)
        self._later.extend(more.items)
        self._begin_later()
        return more

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """See `RolloutQueue.collect`. A request to stop is honoured between two tokens, which leaves the engine in a
        consistent state. If only this rank is stopped, `together` tells the others."""
        done = [item for item in request.items if item.groups is not None]
        while not request.done:
            if done:
                meanwhile([group for item in done for group in item.groups or ()])
            done = [item for item in self._turn() if item.request is request]
        return request.groups()

    def _turn(self) -> list[WorkItem]:
        """Advance everything in flight by one token; return the items that are finished."""
        if self.stop.asked:
            raise Stopped
        with self.stop.deferred():
            self.engine.advance()
        done = [item for item, batch in self._going.items() if batch.done]
        for item in done:
            if (complaint := item.take(self._going.pop(item).groups())) is not None:
                raise EngineError(f"the in-process sampler returned a wrong answer: {complaint}")
        self._begin_later()
        return done

    def _begin_later(self) -> None:
        for item in [item for item in self._later if item.ready]:
            assert item.before is not None
            assert item.before.groups is not None
            sampling, adapter = item.request.sampling, item.request.adapter
            self._going[item] = self.engine.begin_extending(item.before.groups, sampling, adapter, item.seeds)
            self._later.remove(item)

    def where(self) -> str | None:
        return None

    def mark(self) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}
