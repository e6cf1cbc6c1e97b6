"""The records of grading: a grader's input and its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """A grader's six verdicts. Only `correct` is rewarded; only the first two judge the policy's answer.

    The other four are separate so that a broken grader, a broken reference or a policy that stopped
    answering never looks like a policy that answers wrongly.
    """

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    """The completion holds no final answer in an allowed form."""
    UNPARSEABLE = "unparseable"
    """There is an answer (or a reference) that cannot be read as mathematics or text."""
    TIMEOUT = "timeout"
    """Judging took longer than the limit; the worker was killed and replaced."""
    ERROR = "error"
    """The grader failed: out of memory, a crashed worker, a reward function that raised."""


FAILED = frozenset({Verdict.TIMEOUT, Verdict.ERROR})
"""Verdicts that say nothing about the completion: grading itself failed."""

PLAIN = 1
MATH_VERIFY = 2
"""The bits of the other judges in `second_opinion`, which only workers import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeItem:
    r"""One completion to judge.

    Example: `GradeItem(completion="… so \\boxed{72}", reference="72", tokens=180, max_tokens=512)`
    """

    completion: str
    reference: str
    tokens: int | None = None
    """Length of the completion in tokens; only the overlong term reads it."""
    max_tokens: int | None = None
    """The sampling limit, in tokens; only the overlong term reads it."""
    problem: str = ""
    """The problem's text; only a user's reward function reads it."""
    prompt: str = ""
    r"""The text that the completion continues. Only its end matters: if it leaves a thought open (`…<think>\n`), the
    completion begins inside that thought."""
    truncated: bool = False
    """Whether `max_tokens` cut the completion off; only `mask_truncated` reads it."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The problem's other columns, with values that JSON can hold; only a user's reward function reads them."""
    entry: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """For a problem of a generated task, which the task's own scorer judges: `task`, `settings` and the library's
    `entry`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeResult:
    """The judgement of one item.

    Example: `GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="72", terms={}, detail="same_text")`
    """

    verdict: Verdict
    reward: float
    """1.0 if correct, else 0.0, plus the enabled shaping terms; 0.0 if not scored."""
    extracted: str | None
    """The final answer as read from the completion, or None if there is none."""
    terms: dict[str, float] = field(default_factory=dict)
    """The value of each shaping term that was added to the reward, and of `partial`: a task scorer's credit for an
    answer that is only partly right."""
    detail: str = ""
    """The rule that decided, or the text of the error."""
    scored: bool = True
    """Whether the reward says anything about the completion. False if grading failed (`timeout`, `error`), unless
    `mask_unscored` is off; if a reward function returned None; or, with `mask_truncated`, if the completion was cut
    off. Unscored completions contribute to neither training nor any mean of rewards."""
