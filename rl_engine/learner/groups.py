"""Graded groups: what the sampler hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass

from rewards import GradeResult
from rollout.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """The completions of one problem and the verdict on each."""

    rollout: RolloutGroup
    results: tuple[GradeResult, ...]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]

    @property
    def scored(self) -> list[bool]:
        """Which completions have a reward. The others enter neither the baseline nor the loss."""
        return [result.scored for result in self.results]

    @property
    def scored_rewards(self) -> list[float]:
        """The rewards of the scored completions, in order."""
        return [result.reward for result in self.results if result.scored]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ; a group whose rewards are all equal carries no gradient."""
        return len(set(self.scored_rewards)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroups:
    """The groups that a step took from the stream of rollouts."""

    to_learn: tuple[GradedGroup, ...]
    """`train.problems_per_step` groups."""
    replaced: tuple[GradedGroup, ...] = ()
    """Groups without signal that were replaced by others."""
    rollout_s: float
    """Seconds spent sampling the groups, or waiting for them."""
    grade_s: float

    @property
    def all(self) -> tuple[GradedGroup, ...]:
        """The groups to learn from, then the replaced ones."""
        return (*self.to_learn, *self.replaced)
