"""Groups as they come → graded groups: those that are there are graded while others are still sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

from rl_engine.learner.groups import GradedGroup
from rollout.types import RolloutGroup

Grade = Callable[[Sequence[RolloutGroup]], list[GradedGroup]]


@dataclass(eq=False)
class GradingAside:
    """Grading happens in processes: the thread that waits for them takes little from the one that samples.

    It grades one lot at a time, and the next is what has come meanwhile. Left by an exception, it leaves a lot that is
    being graded to the thread: `Grader.close` ends that.
    """

    grade: Grade
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "grading"), init=False)
    _lots: list[Future[list[GradedGroup]]] = field(default_factory=list, init=False)
    _waiting: list[RolloutGroup] = field(default_factory=list, init=False)

    def take(self, groups: Sequence[RolloutGroup]) -> None:
        """Grade these while something else is done."""
        self._waiting += groups
        if not self._lots or self._lots[-1].done():
            self._lots.append(self._thread.submit(self.grade, self._waiting))
            self._waiting = []

    def all_of(self, groups: Sequence[RolloutGroup]) -> list[GradedGroup]:
        """All groups, graded, in order; those that were not taken are graded here and now."""
        known = {id(one.rollout): one for lot in self._lots for one in lot.result()}
        rest = [group for group in groups if id(group) not in known]
        known |= {id(one.rollout): one for one in self.grade(rest)}
        return [known[id(group)] for group in groups]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
