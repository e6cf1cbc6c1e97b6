"""Graded groups: what the sampler hands to the learner."""

from __future__ import annotations

from dataclasses import dataclass

from rewards import GradeResult
from rollout.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class GradedGroup:
    """The completions of a problem and the verdict on each."""

    rollout: RolloutGroup
    results: tuple[GradeResult, ...]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for result in self.results]

    @property
    def scored(self) -> list[bool]:
        """Which completions have a reward at all. The others are in no baseline and no loss."""
        return [result.scored for result in self.results]

    @property
    def scored_rewards(self) -> list[float]:
        """The rewards of those that have one, in order."""
        return [result.reward for result in self.results if result.scored]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ: a group where they do not carries no gradient."""
        return len(set(self.scored_rewards)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroups:
    """The groups that a step took from the stream of rollouts."""

    to_learn: tuple[GradedGroup, ...]
    """`train.problems_per_step` of them."""
    replaced: tuple[GradedGroup, ...] = ()
    """Those without signal whose place others took."""
    rollout_s: float
    """Spent sampling them, or waiting for it."""
    grade_s: float

    @property
    def all(self) -> tuple[GradedGroup, ...]:
        """Those to learn from, then those that were replaced."""
        return (*self.to_learn, *self.replaced)
