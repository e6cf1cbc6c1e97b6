"""Completions and verdicts → the outcome of one problem, from which scores are computed, and its form in files."""

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
    """The answer as read from the completion."""
    verdict: Verdict
    detail: str
    """The grader's rule that decided the verdict."""
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
    """The key of the adapter that produced them, as in `Completion.adapter`."""
    samples: tuple[Sample, ...]
    sampling_s: float = 0.0
    """This problem's share of the seconds that its batch took to sample; 0 if not measured."""

    def to_json(self) -> dict[str, Any]:
        """The outcome without the problem, which its id identifies."""
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


def grade(groups: Sequence[RolloutGroup], grader: Grader, max_tokens: int) -> list[tuple[GradeResult, ...]]:
    """The verdicts on each group's completions, which were sampled up to `max_tokens` tokens."""
    items = [
        GradeItem(
            completion=completion.text,
            reference=group.prompt.problem.answer,
            tokens=len(completion.token_ids),
            max_tokens=max_tokens,
            problem=group.prompt.problem.text,
            prompt=group.prompt.text,
            truncated=completion.finish_reason == "length",
            extra=group.prompt.problem.extra,
            entry=group.prompt.problem.entry,
        )
        for group in groups
        for completion in group.completions
    ]
    return by_group(groups, grader.grade(items))


def grade_groups(groups: Sequence[RolloutGroup], grader: Grader, max_tokens: int, sampling_s: float) -> list[Outcome]:
    """Grade groups that were sampled together in `sampling_s` seconds."""
    results = grade(groups, grader, max_tokens)
    return [outcome_of(group, of_it, sampling_s / len(groups)) for group, of_it in zip(groups, results, strict=True)]


def outcome_of(group: RolloutGroup, results: Sequence[GradeResult], sampling_s: float = 0.0) -> Outcome:
    """The outcome of a graded group. Raises `ValueError` if the completions are from more than one adapter, because
    they would measure none of them."""
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
