"""One pool of workers, driven by the main rank → an engine on every rank.

Its calls are collective: all ranks make them in the same order, get the same answer, and raise what the main rank does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rl_engine.learner.ranks import Ranks
from rollout.config import SamplingConfig
from rollout.engine import PoolEngine
from rollout.pieces import Request
from rollout.types import AdapterRef, Prompt, RolloutGroup

T = TypeVar("T")

# The other ranks hear from the main one so often while it waits for workers: their process group gives up in silence.
NEWS_S = 60.0


@dataclass(frozen=True, slots=True)
class DrivenPool:
    """An `Engine` whose completions can be asked for ahead."""

    pool: PoolEngine | None
    """On the main rank."""
    ranks: Ranks

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
        *,
        urgent: bool = False,
    ) -> Request | None:
        """Ask for completions; what it returns is for `collect`."""
        return None if self.pool is None else self.pool.submit(prompts, sampling, adapter, seeds, urgent=urgent)

    def extend(self, request: Request | None, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request | None:
        """See `PoolEngine.extend`; what it returns is for `collect`, in place of `request`."""
        return None if self.pool is None else self.pool.extend(_known(request), sampling, adapter)

    def collect(self, request: Request | None) -> list[RolloutGroup]:
        """Wait for them: one group a prompt, in order."""
        while not self._from_main(lambda pool: pool.finished(_known(request), NEWS_S)):
            pass
        return self._from_main(lambda pool: _known(request).groups())

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`: every rank asks for the same, and it is sampled once."""
        return self.collect(self.submit(prompts, sampling, adapter, seeds, urgent=True))

    def load_adapter(self, ref: AdapterRef) -> None:
        self._from_main(lambda pool: pool.load_adapter(ref))

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._from_main(lambda pool: pool.unload_adapter(ref))

    def sleep(self) -> None:
        """Nothing to do, nor in `wake`: workers share no memory with the learner."""

    def wake(self) -> None: ...

    def close(self) -> None:
        """Of this rank alone: it is called where others may have failed."""
        if self.pool is not None:
            self.pool.close()

    def metrics(self) -> dict[str, float]:
        """Main rank: how the workers are."""
        return {} if self.pool is None else {"workers/alive": self.pool.alive, "workers/lost": self.pool.lost}

    def _from_main(self, ask: Callable[[PoolEngine], T]) -> T:
        """The main rank's answer, on every rank."""
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


def _known(request: Request | None) -> Request:
    assert request is not None, "the main rank submitted nothing"
    return request
