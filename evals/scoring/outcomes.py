"""Completions and verdicts → the outcome of one problem: what scores are computed from, and what a file keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards import GradeItem, Grader, GradeResult, Verdict
from rollout.types import FinishReason, Problem, RolloutGroup, by_group


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One graded completion."""

    text: str
    extracted: str | None
    """The answer as read from it."""
    verdict: Verdict
    detail: str
    """The grader's rule that decided."""
    tokens: int
    finish_reason: FinishReason

    @property
    def correct(self) -> bool:
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The samples of one problem by one adapter."""

    problem: Problem
    adapter: str
    """Key of what produced them, as in `Completion.adapter`."""
    samples: tuple[Sample, ...]
    sampling_s: float = 0.0
    """This problem's share of the seconds its batch took to sample; 0 where nobody measured."""

    def to_json(self) -> dict[str, Any]:
        """Without the problem, which is known by its id."""
        return {
            "problem_id": self.problem.id,
            "adapter": self.adapter,
            "sampling_s": self.sampling_s,
            "samples": [asdict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], problem: Problem) -> Outcome:
        samples = tuple(Sample(**{**sample, "verdict": Verdict(sample["verdict"])}) for sample in record["samples"])
        return cls(problem=problem, adapter=record["adapter"], samples=samples, sampling_s=record["sampling_s"])


def grade_groups(groups: Sequence[RolloutGroup], grader: Grader, sampling_s: float) -> list[Outcome]:
    """Groups that were sampled together in `sampling_s` seconds, graded."""
    items = [
        GradeItem(
            completion=completion.text,
            reference=group.prompt.problem.answer,
            tokens=len(completion.token_ids),
            problem=group.prompt.problem.text,
            prompt=group.prompt.text,
            entry=group.prompt.problem.entry,
        )
        for group in groups
        for completion in group.completions
    ]
    results = by_group(groups, grader.grade(items))
    return [outcome_of(group, of_it, sampling_s / len(groups)) for group, of_it in zip(groups, results, strict=True)]


def outcome_of(group: RolloutGroup, results: Sequence[GradeResult], sampling_s: float = 0.0) -> Outcome:
    """Raises `ValueError` when the completions are not all of one adapter: they would measure none."""
    adapters = {completion.adapter for completion in group.completions}
    if len(adapters) != 1:
        raise ValueError(f"{group.prompt.problem.id} was answered by several adapters: {', '.join(sorted(adapters))}")
    return Outcome(
        problem=group.prompt.problem,
        adapter=adapters.pop(),
        samples=tuple(
            Sample(
                text=completion.text,
                extracted=result.extracted,
                verdict=result.verdict,
                detail=result.detail,
                tokens=len(completion.token_ids),
                finish_reason=completion.finish_reason,
            )
            for completion, result in zip(group.completions, results, strict=True)
        ),
        sampling_s=sampling_s,
    )
