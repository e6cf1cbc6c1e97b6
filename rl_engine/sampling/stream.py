"""Prompts → the graded groups of each step: sampled ahead of the learner where that is asked for, and groups without
signal replaced by further ones.

The prompts are one stream, and a step takes the next groups of it. All that a resumed run needs is how many were taken.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rl_engine.config import Config
from rl_engine.learner.groups import GradedGroup
from rl_engine.sampling.sampler import Asked, Sampler
from rollout.config import SamplingConfig
from rollout.prompts.cursor import Cursor
from rollout.types import AdapterRef, Prompt


@dataclass(frozen=True, slots=True)
class _Batch:
    """Groups under way that were asked for at once."""

    count: int
    max_tokens: int
    """What their completions have been asked for so far."""
    asked: Asked


@dataclass
class Supply:
    """What the learner is fed with. All ranks call it alike and get the same."""

    config: Config
    cursor: Cursor[Prompt]
    sampler: Sampler
    sampling: SamplingConfig
    _under_way: deque[_Batch] = field(default_factory=deque, init=False)
    _there: deque[GradedGroup] = field(default_factory=deque, init=False)
    """Groups not taken yet."""
    _versions: dict[str, int] = field(default_factory=dict, init=False)
    """By key, of what was sampled from."""
    _metrics: dict[str, float] = field(default_factory=dict, init=False)
    """Of the last step."""

    @property
    def ahead(self) -> int:
        """Groups asked for and not taken."""
        return sum(batch.count for batch in self._under_way) + len(self._there)

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
        self._versions[adapter.key] = adapter.version
        steps = min(self.config.rollout.max_staleness, train.steps - step)
        self._go_on(adapter)
        self._ask((steps + 1) * train.problems_per_step - self.ahead, adapter)
        self.sampler.reset_times()
        taken = self._next(train.problems_per_step, adapter)
        limit = train.max_problems_per_step or train.problems_per_step
        while (missing := train.problems_per_step - sum(map(_has_signal, taken))) and len(taken) < limit:
            taken += self._next(min(missing, limit - len(taken)), adapter)
        self._metrics = self._metrics_of(taken, adapter)
        assert self._metrics["rollout/staleness_max"] <= self.config.rollout.max_staleness
        # Those with signal first; where they do not suffice, the step keeps its size with groups that have none.
        return (
            sorted(taken, key=lambda group: not _has_signal(group)) if len(taken) > train.problems_per_step else taken
        )

    def metrics(self) -> dict[str, float]:
        """Of the last step, and of what samples."""
        return {**self._metrics, **self.sampler.metrics()}

    def _metrics_of(self, taken: Sequence[GradedGroup], adapter: AdapterRef) -> dict[str, float]:
        completions = [completion for graded in taken for completion in graded.group.completions]
        legs = [leg for completion in completions for leg in completion.legs]
        ages = [adapter.version - self._versions[leg.adapter] for leg in legs]
        tokens = [leg.tokens for leg in legs]
        metrics = {
            "rollout/staleness_mean": sum(map(operator.mul, ages, tokens)) / sum(tokens),
            "rollout/staleness_max": float(max(ages)),
        }
        if self.config.rollout.leg_tokens is not None:
            metrics["rollout/continued_frac"] = fmean(bool(completion.earlier) for completion in completions)
        if self.config.train.max_problems_per_step is not None:
            metrics["groups/replaced"] = float(len(taken) - self.config.train.problems_per_step)
        return metrics

    def _go_on(self, adapter: AdapterRef) -> None:
        """The next leg of all that is under way and not asked for as a whole, oldest first."""
        place = len(self._there)
        for index, batch in enumerate(self._under_way):
            self._under_way[index] = self._extended(batch, self._limit(place, batch.max_tokens), adapter)
            place += batch.count

    def _extended(self, batch: _Batch, max_tokens: int, adapter: AdapterRef) -> _Batch:
        if max_tokens == batch.max_tokens:
            return batch
        asked = self.sampler.extend(batch.asked, self._up_to(max_tokens), adapter)
        return _Batch(batch.count, max_tokens, asked)

    def _limit(self, place: int, tokens: int) -> int:
        """Tokens that completions may have after their next leg, where they may have had `tokens` before, and `place`
        groups are to be taken before theirs.

        The step before the one that takes them samples all that is left: that too while the learner works.
        """
        leg_tokens, whole = self.config.rollout.leg_tokens, self.sampling.max_tokens
        if leg_tokens is None or place < 2 * self.config.train.problems_per_step:
            return whole
        return min(tokens + leg_tokens, whole)

    def _up_to(self, max_tokens: int) -> SamplingConfig:
        return self.sampling.model_copy(update={"max_tokens": max_tokens})

    def _ask(self, count: int, adapter: AdapterRef) -> None:
        """The next `count` groups of the stream, in requests of a step's size."""
        size = self.config.train.problems_per_step
        while count > 0:
            first, part = self.cursor.position, min(count, size)
            # A group's seed is that of its place in the stream: of step and index, where every step takes as many.
            seeds = [f"{self.config.seed}/{place // size + 1}/{place % size}" for place in range(first, first + part)]
            max_tokens = self._limit(self.ahead, 0)
            asked = self.sampler.ask(self.cursor.take(part), self._up_to(max_tokens), adapter, seeds)
            self._under_way.append(_Batch(part, max_tokens, asked))
            count -= part

    def _next(self, count: int, adapter: AdapterRef) -> list[GradedGroup]:
        """The next groups of the stream. What has not been asked for is asked for now, and what has been asked for in
        part is wanted whole."""
        self._ask(count - self.ahead, adapter)
        while len(self._there) < count:
            batch = self._extended(self._under_way.popleft(), self.sampling.max_tokens, adapter)
            self._there += batch.asked.collect()
        return [self._there.popleft() for _ in range(count)]


def _has_signal(graded: GradedGroup) -> bool:
    return len(set(graded.rewards)) > 1
