"""Prompts → the graded groups of each step, optionally sampled ahead of the learner, and with groups that carry no
signal replaced by further ones.

The prompts form one stream, and each step takes the next groups from it. To resume, a run needs only the number of
groups taken and, with `data.replay`, which of them taught nothing.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from rl_engine.config import Config
from rl_engine.learner.groups import GradedGroup, StepGroups
from rl_engine.sampling.sampler import GradedBatch, Sampler
from rollout.config import SamplingConfig
from rollout.prompts.cursor import Cursor, Mixed
from rollout.types import AdapterRef, Prompt
from rollout.work_items import PromptBatch, Request


@dataclass(frozen=True, slots=True)
class _Pending:
    """Groups that were requested together and not yet collected."""

    count: int
    max_tokens: int
    """The length up to which their completions have been requested so far."""
    request: Request


@dataclass
class RolloutStream:
    """Supplies the learner with graded groups. All ranks make the same calls and get the same groups."""

    config: Config
    cursor: Cursor[Prompt] | Mixed[Prompt]
    sampler: Sampler
    sampling: SamplingConfig
    _in_flight: deque[_Pending] = field(default_factory=deque, init=False)
    _ready: deque[GradedGroup] = field(default_factory=deque, init=False)
    """Groups collected but not yet taken."""
    _versions: dict[str, int] = field(default_factory=dict, init=False)
    """`AdapterRef.key` → version, for every adapter that was sampled from."""
    _metrics: dict[str, float] = field(default_factory=dict, init=False)
    """Metrics of the last step's groups."""

    @property
    def ahead(self) -> int:
        """Groups requested but not yet taken."""
        return sum(batch.count for batch in self._in_flight) + len(self._ready)

    @property
    def position(self) -> int:
        """Problems that finished steps have taken. Those in flight do not count: a resumed run requests them again."""
        return self.cursor.position - self.ahead

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the position, as JSON."""
        return self.cursor.state(self.position)

    def take(self, step: int, adapter: AdapterRef) -> StepGroups:
        """Return the groups of a step.

        Every step takes at least `problems_per_step` groups from the stream, so a group requested `max_staleness` steps
        ahead is never older than that when it is taken.
        """
        train = self.config.train
        size, limit = train.problems_per_step, train.max_problems_per_step or train.problems_per_step
        self.sampler.queue.mark()
        self._versions[adapter.key] = adapter.version
        steps = min(self.config.rollout.max_staleness, train.steps - step)
        self._extend_in_flight(adapter)
        self._submit((steps + 1) * size - self.ahead, adapter)
        taken: list[GradedGroup] = []
        collected: list[GradedBatch] = []
        missing = size
        while missing > 0 and len(taken) < limit:
            wanted = self._wanted(missing, limit - len(taken), taken)
            self._submit(wanted - self.ahead, adapter)
            # On-policy, nothing is left over for the next step, which samples from another version.
            count = min(missing, wanted) if self.config.rollout.max_staleness else wanted
            collected += self._collect(count, adapter)
            taken += [self._ready.popleft() for _ in range(count)]
            missing = size - sum(group.has_signal for group in taken)
        self._metrics = self._metrics_of(taken, adapter)
        assert self._metrics["rollout/staleness_max"] <= self.config.rollout.max_staleness
        for position, group in enumerate(taken, self.position - len(taken)):
            # Nothing is known about a group that could not be graded, so it does not count as having taught nothing.
            self.cursor.learned(position, taught=group.has_signal or not group.scored_rewards)
        if len(taken) > size:
            # If there are too few groups with signal, groups without fill the step up to its size.
            taken.sort(key=lambda group: not group.has_signal)
        return StepGroups(
            to_learn=tuple(taken[:size]),
            replaced=tuple(taken[size:]),
            rollout_s=sum(batch.rollout_s for batch in collected),
            grade_s=sum(batch.grade_s for batch in collected),
        )

    def _wanted(self, missing: int, left: int, taken: Sequence[GradedGroup]) -> int:
        """How many groups to take when `missing` groups with signal are still needed, at most `left`: as many as should
        contain them at the share with signal seen in `taken`, so that a second round is rare.

        A resumed run has seen the same groups, and so requests the same number.
        """
        share = max(1, sum(group.has_signal for group in taken)) / max(1, len(taken))
        wanted = min(left, math.ceil(missing / share) if taken else missing)
        ahead = self.config.rollout.max_staleness * self.config.train.problems_per_step
        # When sampling ahead, the surplus goes to later steps; more than they can take would become too stale.
        return min(wanted, missing + ahead) if ahead else wanted

    def metrics(self) -> dict[str, float]:
        """Metrics of the last step's groups, and of the sampler."""
        return {**self._metrics, **self.sampler.queue.metrics()}

    def _metrics_of(self, taken: Sequence[GradedGroup], adapter: AdapterRef) -> dict[str, float]:
        completions = [completion for group in taken for completion in group.rollout.completions]
        segments = [segment for completion in completions for segment in completion.segments]
        ages = [adapter.version - self._versions[segment.adapter] for segment in segments]
        tokens = [segment.tokens for segment in segments]
        metrics = {
            "rollout/staleness_mean": sum(map(operator.mul, ages, tokens)) / sum(tokens),
            "rollout/staleness_max": float(max(ages)),
        }
        if self.config.rollout.leg_tokens is not None:
            metrics["rollout/continued_frac"] = fmean(bool(completion.earlier) for completion in completions)
        if self.config.train.max_problems_per_step is not None:
            metrics["groups/replaced"] = float(len(taken) - self.config.train.problems_per_step)
        return metrics

    def _extend_in_flight(self, adapter: AdapterRef) -> None:
        """Request the next segment of everything in flight that has not been requested in full, oldest first."""
        place = len(self._ready)
        for index, batch in enumerate(self._in_flight):
            self._in_flight[index] = self._extended(batch, self._limit(place, batch.max_tokens), adapter)
            place += batch.count

    def _extended(self, batch: _Pending, max_tokens: int, adapter: AdapterRef) -> _Pending:
        if max_tokens == batch.max_tokens:
            return batch
        request = self.sampler.queue.extend(batch.request, self._up_to(max_tokens), adapter)
        return replace(batch, max_tokens=max_tokens, request=request)

    def _limit(self, place: int, tokens: int) -> int:
        """Token limit of completions after their next segment, given their current limit `tokens` and the number
        `place` of groups that will be taken before theirs.

        The step before the one that takes them requests all that remains, so that this too is sampled while the learner
        works.
        """
        segment_tokens, whole = self.config.rollout.leg_tokens, self.sampling.max_tokens
        if segment_tokens is None or place < 2 * self.config.train.problems_per_step:
            return whole
        return min(tokens + segment_tokens, whole)

    def _up_to(self, max_tokens: int) -> SamplingConfig:
        return self.sampling.model_copy(update={"max_tokens": max_tokens})

    def _submit(self, count: int, adapter: AdapterRef) -> None:
        """Request the next `count` groups of the stream, in requests of at most one step's size."""
        size = self.config.train.problems_per_step
        while count > 0:
            first, part = self.cursor.position, min(count, size)
            # A group's seed follows from its place in the stream: the step and index it has if every step takes `size`.
            seeds = [f"{self.config.seed}/{place // size + 1}/{place % size}" for place in range(first, first + part)]
            max_tokens = self._limit(self.ahead, 0)
            batch = PromptBatch(self.cursor.take(part), self._up_to(max_tokens), adapter, seeds)
            request = self.sampler.queue.submit(batch)
            self._in_flight.append(_Pending(part, max_tokens, request))
            count -= part

    def _collect(self, count: int, adapter: AdapterRef) -> list[GradedBatch]:
        """Make the next `count` groups of the stream ready, and return the batches collected for that. Groups not yet
        requested are requested now, and partly requested completions are requested in full."""
        self._submit(count - self.ahead, adapter)
        collected = []
        while len(self._ready) < count:
            batch = self._extended(self._in_flight.popleft(), self.sampling.max_tokens, adapter)
            collected.append(self.sampler.collect(batch.request))
            self._ready += collected[-1].groups
        return collected
