"""Prompts → rollouts that are asked for now and collected later: the seam between a run and whatever samples for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rl_engine.learner.ranks import Ranks
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.stopping import StopRequest
from rollout.types import AdapterRef, Prompt, RolloutGroup
from rollout.work_items import Request, WorkItem, split


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

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
        *,
        urgent: bool = False,
        prompts_per_piece: int | None = None,
    ) -> Request:
        """Ask for a group of each prompt; what is urgent goes before what waits. Workers of a pool are given
        `prompts_per_piece` at a time, where that is not as set."""
        ...

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """Go on with what a request leaves unfinished, up to `sampling.max_tokens` tokens; to be collected in its
        place."""
        ...

    def collect(self, request: Request) -> list[RolloutGroup]:
        """Wait for the groups of a request, one a prompt, in order: all of them on every rank where the queue
        `tells_all`, or this rank's share, as `Ranks.share` deals it.

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


@dataclass(frozen=True, slots=True)
class LocalQueue:
    """An engine in this rank's process. It samples when a request is collected, each rank its own share."""

    engine: Engine
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def tells_all(self) -> bool:
        return False

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
        *,
        urgent: bool = False,
        prompts_per_piece: int | None = None,
    ) -> Request:
        """See `RolloutQueue.submit`. Nothing waits here: the order is that of the collecting. A request is one
        batch."""
        prompts, seeds = self.ranks.share(list(prompts)), self.ranks.share(list(seeds))
        return split(prompts, sampling, adapter, seeds, max(1, len(prompts)))

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`. Nothing of it has begun, so all is sampled at once, by `adapter`."""
        whole = Request(sampling, adapter)
        whole.items += [WorkItem(whole, item.prompts, item.seeds) for item in request.items]
        return whole

    def collect(self, request: Request) -> list[RolloutGroup]:
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
