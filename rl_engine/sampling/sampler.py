"""Rollouts → graded groups: every rank grades its share, and every rank then knows the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rewards import GradeItem, Grader
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.queue import RolloutQueue
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.types import RolloutGroup
from rollout.work_items import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedBatch:
    """What was collected at once, one group a prompt, in order."""

    groups: list[GradedGroup]
    rollout_s: float
    """Spent sampling them, or waiting for it."""
    grade_s: float


@dataclass(frozen=True, slots=True)
class Sampler:
    """The queue and the grader of this rank."""

    queue: RolloutQueue
    grader: Grader
    ranks: Ranks

    @property
    def engine(self) -> Engine:
        return self.queue.engine

    def collect(self, request: Request) -> GradedBatch:
        """Wait for a request of the queue, and grade it."""
        start = time.monotonic()
        mine = self.queue.collect(request)
        sampled = time.monotonic()
        groups = self.ranks.gather(self._grade(mine, request.sampling))
        return GradedBatch(groups=groups, rollout_s=sampled - start, grade_s=time.monotonic() - sampled)

    def _grade(self, groups: Sequence[RolloutGroup], sampling: SamplingConfig) -> list[GradedGroup]:
        results = self.grader.grade(
            [
                GradeItem(
                    completion=completion.text,
                    reference=group.prompt.problem.answer,
                    tokens=len(completion.token_ids),
                    max_tokens=sampling.max_tokens,
                    problem=group.prompt.problem.text,
                )
                for group in groups
                for completion in group.completions
            ]
        )
        starts = range(0, len(results), sampling.n)
        return [
            GradedGroup(group, tuple(results[start : start + sampling.n]))
            for group, start in zip(groups, starts, strict=True)
        ]
