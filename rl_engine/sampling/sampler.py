"""Rollouts → graded groups: every rank grades its share, and all ranks then receive the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from evals.scoring.outcomes import grade
from rewards import Grader
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.collective import leave_if_asked, together
from rl_engine.sampling.grading import GradingAside
from rl_engine.sampling.queue import RolloutQueue
from rollout.engine import Engine
from rollout.stopping import StopRequest
from rollout.types import RolloutGroup
from rollout.work_items import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedBatch:
    """The groups of one request, one per prompt, in order."""

    groups: list[GradedGroup]
    rollout_s: float
    """Time spent sampling, or waiting for samples."""
    grade_s: float
    """Time spent waiting for verdicts after everything was sampled."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """This rank's queue and grader."""

    queue: RolloutQueue
    grader: Grader
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def engine(self) -> Engine:
        return self.queue.engine

    def collect(self, request: Request) -> GradedBatch:
        """Wait for a request of the queue, and grade it.

        Raises `Stopped` on every rank when any was asked to stop, `EngineError` when another rank failed.
        """
        start = time.monotonic()
        grades = partial(self._grade, max_tokens=request.sampling.max_tokens)
        with together(self.ranks, self.stop), GradingAside(grades) as aside:
            groups = self.queue.collect(request, aside.take)
            sampled = time.monotonic()
            mine = self.ranks.share(groups) if self.queue.has_all_groups else groups
            with self.stop.raised():
                verdicts = [one.results for one in aside.all_of(mine)]
        # Completions are far larger than verdicts, so they are sent only once.
        if not self.queue.has_all_groups:
            groups = self.ranks.gather(groups)
        graded = [
            GradedGroup(group, results) for group, results in zip(groups, self.ranks.gather(verdicts), strict=True)
        ]
        return GradedBatch(groups=graded, rollout_s=sampled - start, grade_s=time.monotonic() - sampled)

    def leave_if_asked(self) -> None:
        """Raises `Stopped` on every rank when any was asked to stop."""
        leave_if_asked(self.ranks, self.stop)

    def _grade(self, groups: Sequence[RolloutGroup], max_tokens: int) -> list[GradedGroup]:
        results = grade(groups, self.grader, max_tokens)
        return [GradedGroup(group, of_it) for group, of_it in zip(groups, results, strict=True)]
