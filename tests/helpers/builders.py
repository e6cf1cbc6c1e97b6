"""Builders of a prompt, completion, verdict or group: a test gives the values it cares about, the rest are defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.scoring.outcomes import Outcome, Sample
from rewards import GradeResult, Verdict
from rl_engine.learner.groups import GradedGroup
from rollout.types import Completion, FinishReason, Problem, Prompt, RolloutGroup

Graded = tuple[Completion, GradeResult]


def prompt(
    text: str = "1+1=?",
    *,
    id: str | None = None,
    problem: str | None = None,
    answer: str = "2",
    tokens: Sequence[int] = (),
) -> Prompt:
    """A prompt. By default its text is also its problem's text and id."""
    asked = text if problem is None else problem
    return Prompt(
        problem=Problem(id=asked if id is None else id, text=asked, answer=answer), text=text, token_ids=tuple(tokens)
    )


def completion(
    text: str = "",
    *,
    tokens: int = 1,
    logprob: float = -1.0,
    finish_reason: FinishReason = "stop",
    adapter: str = "policy-v000000",
) -> Completion:
    """A completion of `tokens` tokens with equal log-probabilities."""
    return Completion(
        text=text,
        token_ids=tuple(range(tokens)),
        logprobs=(logprob,) * tokens,
        finish_reason=finish_reason,
        adapter=adapter,
    )


def result(
    verdict: Verdict = Verdict.CORRECT,
    reward: float | None = None,
    *,
    extracted: str | None = None,
    terms: Mapping[str, float] | None = None,
    scored: bool = True,
) -> GradeResult:
    """A grading result. By default the reward is 1 for a correct verdict and 0 otherwise."""
    worth = float(verdict is Verdict.CORRECT) if reward is None else reward
    return GradeResult(verdict=verdict, reward=worth, extracted=extracted, terms=dict(terms or {}), scored=scored)


def graded_group(prompt: Prompt, pairs: Sequence[Graded]) -> GradedGroup:
    completions, results = zip(*pairs, strict=True)
    return GradedGroup(RolloutGroup(prompt=prompt, completions=completions), results)


def sample(
    extracted: str | None, verdict: Verdict = Verdict.INCORRECT, *, tokens: int = 1, truncated: bool = False
) -> Sample:
    """A graded completion of an evaluation."""
    return Sample(
        text="",
        extracted=extracted,
        verdict=verdict,
        detail="",
        tokens=tokens,
        finish_reason="length" if truncated else "stop",
    )


def outcome(name: str, *samples: Sample, level: str = "", adapter: str = "base", sampling_s: float = 0.0) -> Outcome:
    """The outcome of a problem of this name, whose answer is 1."""
    problem = Problem(id=name, text=name, answer="1", level=level, subject="s")
    return Outcome(problem=problem, adapter=adapter, samples=samples, sampling_s=sampling_s)
