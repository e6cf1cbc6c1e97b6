"""Groups as they arrive → graded groups: finished groups are graded while others are still being sampled."""

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
    """Grades groups in the background. The work happens in other processes, so the thread that waits for them takes
    little time from the one that samples.

    It grades one lot at a time; the next lot is whatever has arrived in the meantime. If an exception leaves the
    `with` block, a lot that is being graded is left to the thread until `Grader.close` ends it.
    """

    grade: Grade
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "grading"), init=False)
    _lots: list[Future[list[GradedGroup]]] = field(default_factory=list, init=False)
    _waiting: list[RolloutGroup] = field(default_factory=list, init=False)

    def take(self, groups: Sequence[RolloutGroup]) -> None:
        """Grade these in the background."""
        self._waiting += groups
        if not self._lots or self._lots[-1].done():
            self._lots.append(self._thread.submit(self.grade, self._waiting))
            self._waiting = []

    def all_of(self, groups: Sequence[RolloutGroup]) -> list[GradedGroup]:
        """Return all groups graded, in order; those not yet passed to `take` are graded now."""
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
