"""One thread drives an engine that takes further work while it samples; the threads of its callers wait for theirs.

An engine is for one thread. Between two tokens it does what else it was asked for, a version to load or a batch to
begin, in the order of the asking.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from rollout.engine import InFlight
from rollout.types import RolloutGroup

T = TypeVar("T")


@dataclass(eq=False)
class EngineThread:
    """`advance` is the engine's: see `StreamingEngine.advance`."""

    advance: Callable[[], list[InFlight]]
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "engine"), init=False)
    _going: dict[InFlight, Future[list[RolloutGroup]]] = field(default_factory=dict, init=False)
    """Batches and who waits for them; only the engine's thread uses it."""

    def call(self, what: Callable[[], T]) -> T:
        """What it gives, done between two tokens."""
        return self._thread.submit(what).result()

    def sample(self, begin: Callable[[], InFlight]) -> list[RolloutGroup]:
        """The groups of a batch, begun at once and sampled beside the others. Raises what ended the sampling."""
        return self.call(partial(self._admit, begin)).result()

    def _admit(self, begin: Callable[[], InFlight]) -> Future[list[RolloutGroup]]:
        batch, answer = begin(), Future[list[RolloutGroup]]()
        if batch.done:
            answer.set_result(batch.groups())
            return answer
        if not self._going:
            self._thread.submit(self._turn)
        self._going[batch] = answer
        return answer

    def _turn(self) -> None:
        """A token of everything, and in a while the next: behind what was asked for meanwhile."""
        try:
            for batch in self.advance():
                groups = batch.groups()
                self._going.pop(batch).set_result(groups)
        except BaseException as error:
            for answer in self._going.values():
                answer.set_exception(error)
            self._going.clear()
            raise
        if self._going:
            self._thread.submit(self._turn)
