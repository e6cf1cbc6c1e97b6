"""Prompts → rollouts that are asked for now and collected later: the seam between a run and whatever samples for it."""

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
    """Nothing is done with groups before all are there."""


class RolloutQueue(Protocol):
    """What samples for a run. Its calls are collective: all ranks make them in the same order."""

    @property
    def engine(self) -> Engine:
        """What samples, to load versions into and to ask at once."""
        ...

    @property
    def tells_all(self) -> bool:
        """Whether every rank hears of all groups that were sampled, not of those of its share alone."""
        ...

    def submit(self, batch: PromptBatch) -> Request:
        """Ask for a group of each prompt."""
        ...

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """Go on with what a request leaves unfinished, up to `sampling.max_tokens` tokens; to be collected in its
        place."""
        ...

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """Wait for the groups of a request, one a prompt, in order: all of them on every rank where the queue
        `tells_all`, or this rank's share, as `Ranks.share` deals it.

        `meanwhile` may be given some of them as they come, each once, while others are still sampled: it is not to
        take long.
        Raises `Stopped` when someone asks to stop: what is not finished is dropped.
        """
        ...

    def where(self) -> str | None:
        """Where workers sample, for people; None where there are none, and on other ranks than the main one."""
        ...

    def mark(self) -> None:
        """A step begins: what `metrics` counts is counted from here on."""
        ...

    def metrics(self) -> dict[str, float]:
        """How what samples is, on the main rank."""
        ...


def share(batch: PromptBatch, ranks: Ranks) -> PromptBatch:
    """What this rank samples of a batch."""
    return replace(batch, prompts=ranks.share([*batch.prompts]), seeds=ranks.share([*batch.seeds]))


@dataclass(frozen=True, slots=True)
class LocalQueue:
    """An engine in this rank's process, where results are repeated bit for bit: it samples when a request is collected,
    as one batch, each rank its own share."""

    engine: Engine
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def tells_all(self) -> bool:
        return False

    def submit(self, batch: PromptBatch) -> Request:
        """See `RolloutQueue.submit`. Nothing waits here: the order is that of the collecting. A request is one
        batch."""
        mine = share(batch, self.ranks)
        return split(mine, max(1, len(mine.prompts)))

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`. Nothing of it has begun, so all is sampled at once, by `adapter`."""
        whole = Request(sampling, adapter)
        whole.items += [WorkItem(whole, item.prompts, item.seeds) for item in request.items]
        return whole

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """See `RolloutQueue.collect`. Where this rank is stopped the others are not yet: `together` tells them."""
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
    """An engine in this rank's process, where nothing is tied to batches: each group is begun when it is asked for, and
    sampled beside all others while any are collected."""

    engine: StreamingEngine
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)
    _going: dict[WorkItem, InFlight] = field(default_factory=dict, init=False)
    _later: list[WorkItem] = field(default_factory=list, init=False)
    """What goes on with something that is not there yet."""

    @property
    def tells_all(self) -> bool:
        return False

    def submit(self, batch: PromptBatch) -> Request:
        """See `RolloutQueue.submit`. What is urgent is sampled beside the rest; a piece is a group."""
        request = split(share(batch, self.ranks), 1)
        for item in request.items:
            self._going[item] = self.engine.begin(item.prompts, batch.sampling, batch.adapter, item.seeds)
        return request

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`. A group goes on as soon as what is begun of it is there."""
        more = extended(request, sampling, adapter)
        self._later.extend(more.items)
        self._begin_later()
        return more

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """See `RolloutQueue.collect`. A request to stop is heeded between two tokens: the engine stays as it should.
        Where this rank is stopped the others are not yet: `together` tells them."""
        done = [item for item in request.items if item.groups is not None]
        while not request.done:
            if done:
                meanwhile([group for item in done for group in item.groups or ()])
            done = [item for item in self._turn() if item.request is request]
        return request.groups()

    def _turn(self) -> list[WorkItem]:
        """A token of all that is begun; what is there since."""
        if self.stop.asked:
            raise Stopped
        with self.stop.noted():
            self.engine.advance()
        done = [item for item, batch in self._going.items() if batch.done]
        for item in done:
            if (complaint := item.take(self._going.pop(item).groups())) is not None:
                raise EngineError(f"of what was sampled in process: {complaint}")
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
