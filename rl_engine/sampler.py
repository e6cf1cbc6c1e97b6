"""Prompts → graded groups: every rank samples and grades its share, and every rank then knows the whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rewards import GradeItem, Grader, GradeResult
from rl_engine.ranks import Ranks
from rollout.config import SamplingConfig
from rollout.engine import Engine
from rollout.types import AdapterRef, Prompt, RolloutGroup


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """A group and the verdict on each of its completions."""

    group: RolloutGroup
    results: tuple[GradeResult, ...]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]


@dataclass
class Sampler:
    """The engine and the grader of this rank."""

    engine: Engine
    grader: Grader
    ranks: Ranks
    rollout_s: float = field(default=0.0, init=False)
    """Seconds the last call spent sampling."""
    grade_s: float = field(default=0.0, init=False)

    def graded_groups(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seed: str
    ) -> list[GradedGroup]:
        """One graded group a prompt, in order. `seed` names the occasion: the run's seed and the step."""
        start = time.monotonic()
        numbered = self.ranks.share(list(enumerate(prompts)))
        groups = self.engine.generate(
            [prompt for _, prompt in numbered],
            sampling,
            adapter,
            [f"{seed}/{index}" for index, _ in numbered],
        )
        self.rollout_s = time.monotonic() - start
        start = time.monotonic()
        graded = self.ranks.gather(self._grade(groups, sampling))
        self.grade_s = time.monotonic() - start
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
