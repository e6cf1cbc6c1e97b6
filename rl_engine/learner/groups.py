"""A graded group: what the sampler hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass

from rewards import GradeResult
from rollout.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """A group and the verdict on each of its completions."""

    group: RolloutGroup
    results: tuple[GradeResult, ...]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]
