"""One thread drives an engine that accepts further work while it samples; the callers' threads wait for their results.

An engine may be used from one thread only. Between two tokens, that thread performs the other requests, such as loading
a version or starting a batch, in the order in which they were made.
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
    """The thread of one engine. `advance` is the engine's method: see `StreamingEngine.advance`."""

    advance: Callable[[], list[InFlight]]
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "engine"), init=False)
    _going: dict[InFlight, Future[list[RolloutGroup]]] = field(default_factory=dict, init=False)
    """Batch → future of its groups; used only by the engine's thread."""

    def call(self, what: Callable[[], T]) -> T:
        """Call `what` between two tokens, in the engine's thread, and return its result."""
        return self._thread.submit(what).result()

    def sample(self, begin: Callable[[], InFlight]) -> list[RolloutGroup]:
        """Start a batch now, sample it alongside the others, and return its groups. Raises what ended the sampling."""
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
        """Advance all batches by one token, and queue the next turn behind the requests made in the meantime."""
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
