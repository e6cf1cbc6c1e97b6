"""Prompts → graded groups: every rank samples and grades its share, and every rank then knows the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rewards import GradeItem, Grader
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.shared_pool import DrivenPool
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.pieces import Request
from rollout.types import AdapterRef, Prompt, RolloutGroup


@dataclass(frozen=True, slots=True)
class Asked:
    """Groups that were asked for."""

    collect: Callable[[], list[GradedGroup]]
    """Wait for them, and grade them: one a prompt, in order."""
    request: Request | None = None
    """Of a pool, on the rank that drives it."""


@dataclass
class Sampler:
    """The engine and the grader of this rank."""

    engine: Engine | DrivenPool
    grader: Grader
    ranks: Ranks
    rollout_s: float = field(default=0.0, init=False)
    """Seconds spent sampling, or waiting for it, since `reset_times`."""
    grade_s: float = field(default=0.0, init=False)

    def metrics(self) -> dict[str, float]:
        """How the workers of a pool are."""
        return self.engine.metrics() if isinstance(self.engine, DrivenPool) else {}

    def reset_times(self) -> None:
        self.rollout_s = self.grade_s = 0.0

    def graded_groups(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[GradedGroup]:
        """One graded group a prompt, in order, before anything that was asked for ahead."""
        self.reset_times()
        return self.ask(prompts, sampling, adapter, seeds, urgent=True).collect()

    def ask(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        seeds: Sequence[str],
        *,
        urgent: bool = False,
    ) -> Asked:
        """Ask for completions. A pool begins at once, an engine of this rank's own when they are collected."""
        engine = self.engine
        if isinstance(engine, DrivenPool):
            return self._of_pool(engine, engine.submit(prompts, sampling, adapter, seeds, urgent=urgent), sampling)
        mine = self.ranks.share(list(zip(prompts, seeds, strict=True)))
        return Asked(
            lambda: self._graded(
                lambda: engine.generate([prompt for prompt, _ in mine], sampling, adapter, [seed for _, seed in mine]),
                sampling,
            )
        )

    def extend(self, asked: Asked, sampling: SamplingConfig, adapter: AdapterRef | None) -> Asked:
        """Ask a pool to go on with what `asked` leaves unfinished, up to `sampling.max_tokens`; to be collected in its
        place."""
        assert isinstance(self.engine, DrivenPool)
        return self._of_pool(self.engine, self.engine.extend(asked.request, sampling, adapter), sampling)

    def _of_pool(self, pool: DrivenPool, request: Request | None, sampling: SamplingConfig) -> Asked:
        return Asked(lambda: self._graded(lambda: self.ranks.share(pool.collect(request)), sampling), request)

    def _graded(self, groups: Callable[[], list[RolloutGroup]], sampling: SamplingConfig) -> list[GradedGroup]:
        """Every rank grades its share, and has the whole."""
        start = time.monotonic()
        mine = groups()
        sampled = time.monotonic()
        graded = self.ranks.gather(self._grade(mine, sampling))
        self.rollout_s += sampled - start
        self.grade_s += time.monotonic() - sampled
        return graded

    def _grade(self, groups: Sequence[RolloutGroup], sampling: SamplingConfig) -> list[GradedGroup]:
        items = [
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
        results = iter(self.grader.grade(items))
        return [GradedGroup(group, tuple(next(results) for _ in group.completions)) for group in groups]
