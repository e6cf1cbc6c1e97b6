"""Prompts → the graded groups of each step: sampled ahead of the learner where that is asked for, and groups without
signal replaced by further ones.

The prompts are one stream, and a step takes the next groups of it. All that a resumed run needs is how many were taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from rl_engine.config import Config
from rl_engine.sampler import GradedGroup, Sampler
from rollout.config import SamplingConfig
from rollout.cursor import Cursor
from rollout.types import AdapterRef, Prompt


@dataclass(frozen=True, slots=True)
class _Asked:
    """Groups under way."""

    count: int
    version: int
    collect: Callable[[], list[GradedGroup]]


@dataclass
class Supply:
    """What the learner is fed with. All ranks call it alike and get the same."""

    config: Config
    cursor: Cursor[Prompt]
    sampler: Sampler
    sampling: SamplingConfig
    staleness: list[int] = field(default_factory=list, init=False)
    """Of each group of the last step: updates between the adapter that sampled it and the one it was taken under."""
    _asked: deque[_Asked] = field(default_factory=deque, init=False)
    _there: deque[tuple[int, GradedGroup]] = field(default_factory=deque, init=False)
    """Groups not taken yet, each with the version that sampled it."""

    @property
    def ahead(self) -> int:
        """Groups asked for and not taken."""
        return sum(asked.count for asked in self._asked) + len(self._there)

    @property
    def position(self) -> int:
        """Problems that finished steps have taken: those under way are asked for anew by a resumed run."""
        return self.cursor.position - self.ahead

    def take(self, step: int, adapter: AdapterRef) -> list[GradedGroup]:
        """The groups of a step: first the `problems_per_step` to learn from, then those that were replaced.

        Every step takes at least that many from the stream, so what is asked for `max_staleness` steps ahead is never
        older than that when it is taken.
        """
        train = self.config.train
        steps = min(self.config.rollout.max_staleness, train.steps - step)
        self._ask((steps + 1) * train.problems_per_step - self.ahead, adapter)
        self.sampler.reset_times()
        taken = self._next(train.problems_per_step, adapter)
        limit = train.max_problems_per_step or train.problems_per_step
        while (missing := train.problems_per_step - sum(map(_has_signal, taken))) and len(taken) < limit:
            taken += self._next(min(missing, limit - len(taken)), adapter)
        self.staleness = [adapter.version - version for version, _ in taken]
        assert max(self.staleness) <= self.config.rollout.max_staleness
        # Those with signal first; where they do not suffice, the step keeps its size with groups that have none.
        ordered = (
            sorted(taken, key=lambda pair: not _has_signal(pair)) if len(taken) > train.problems_per_step else taken
        )
        return [group for _, group in ordered]

    def metrics(self) -> dict[str, float]:
        """Of the last step, and of what samples."""
        replaced = len(self.staleness) - self.config.train.problems_per_step
        return {
            "rollout/staleness_mean": fmean(self.staleness),
            "rollout/staleness_max": float(max(self.staleness)),
            **({"groups/replaced": float(replaced)} if self.config.train.max_problems_per_step else {}),
            **self.sampler.metrics(),
        }

    def _ask(self, count: int, adapter: AdapterRef) -> None:
        if count <= 0:
            return
        first, size = self.cursor.position, self.config.train.problems_per_step
        # A group's seed is that of its place in the stream: of step and index, where every step takes as many.
        seeds = [f"{self.config.seed}/{place // size + 1}/{place % size}" for place in range(first, first + count)]
        collect = self.sampler.ask(self.cursor.take(count), self.sampling, adapter, seeds)
        self._asked.append(_Asked(count, adapter.version, collect))

    def _next(self, count: int, adapter: AdapterRef) -> list[tuple[int, GradedGroup]]:
        """The next groups of the stream; what has not been asked for is asked for now."""
        self._ask(count - self.ahead, adapter)
        while len(self._there) < count:
            asked = self._asked.popleft()
            self._there += [(asked.version, group) for group in asked.collect()]
        return [self._there.popleft() for _ in range(count)]


def _has_signal(taken: tuple[int, GradedGroup]) -> bool:
    return len(set(taken[1].rewards)) > 1
