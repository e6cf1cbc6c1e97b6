"""One pool of workers, driven by the main rank → a queue and an engine on every rank.

Calls are collective: all ranks make them in the same order, get the same answer, and raise what the main rank raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.collective import leave_if_asked
from rl_engine.sampling.queue import Meanwhile, wait
from rollout.config import SamplingConfig
from rollout.engine import Engine, PoolEngine
from rollout.stopping import StopRequest
from rollout.types import AdapterRef, Prompt, RolloutGroup
from rollout.work_items import PromptBatch, Request, WorkItem

T = TypeVar("T")

# How often the ranks communicate while the main one waits for workers: to pass on a request to stop, and because a
# process group times out when it is silent.
NEWS_S = 1.0


@dataclass(frozen=True, slots=True)
class RankSharedPool:
    """A `RolloutQueue` that is its own `Engine`. Workers sample what is submitted while the ranks do something else."""

    pool: PoolEngine | None
    """The pool on the main rank, None on the others."""
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def engine(self) -> Engine:
        return self

    @property
    def has_all_groups(self) -> bool:
        return True

    def submit(self, batch: PromptBatch) -> Request:
        """See `RolloutQueue.submit`. The other ranks' requests are empty: they receive the results of the main one."""
        return Request(batch.sampling, batch.adapter) if self.pool is None else self.pool.submit(batch)

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """See `RolloutQueue.extend`."""
        return Request(sampling, adapter) if self.pool is None else self.pool.extend(request, sampling, adapter)

    def collect(self, request: Request, meanwhile: Meanwhile = wait) -> list[RolloutGroup]:
        """See `RolloutQueue.collect`. With several ranks all groups are passed on at once, when the last is there.
        Raises `Stopped` on a request to stop."""
        groups, announced = None, set[WorkItem]()
        while groups is None:
            leave_if_asked(self.ranks, self.stop)
            if self.ranks.count == 1:
                done = [item for item in request.items if item.groups is not None and item not in announced]
                if done and len(announced) + len(done) < len(request.items):
                    announced.update(done)
                    meanwhile([group for item in done for group in item.groups or ()])
            groups = self._from_main(lambda pool: pool.collect(request, NEWS_S))
        return groups

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`. Every rank makes the same request, which is sampled once."""
        return self.collect(self.submit(PromptBatch(prompts, sampling, adapter, seeds, urgent=True)))

    def load_adapter(self, ref: AdapterRef) -> None:
        self._from_main(lambda pool: pool.load_adapter(ref))

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._from_main(lambda pool: pool.unload_adapter(ref))

    def sleep(self) -> None:
        """Nothing to do here or in `wake`: workers share no memory with the learner."""

    def wake(self) -> None: ...

    def close(self) -> None:
        """The one call that is not collective, because other ranks may have failed when it is made."""
        if self.pool is not None:
            self.pool.close()

    def where(self) -> str | None:
        """See `RolloutQueue.where`."""
        return None if self.pool is None else self.pool.where()

    def mark(self) -> None:
        """See `RolloutQueue.mark`."""
        if self.pool is not None:
            self.pool.mark()

    def metrics(self) -> dict[str, float]:
        """See `RolloutQueue.metrics`."""
        if self.pool is None:
            return {}
        figures = {"alive": self.pool.alive, "lost": self.pool.lost, **self.pool.figures()}
        return {f"workers/{name}": value for name, value in figures.items()}

    def _from_main(self, ask: Callable[[PoolEngine], T]) -> T:
        """Call `ask` on the main rank, and return or raise its result on every rank."""
        answer: T | Exception | None = None
        if self.pool is not None:
            try:
                answer = ask(self.pool)
            except (RuntimeError, ValueError, OSError) as error:
                answer = error
        answer = self.ranks.broadcast(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]
