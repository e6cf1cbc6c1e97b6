"""The records of grading: what is asked of a grader, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The six things a grader can say. Only `correct` is rewarded; only the first two judge the policy.

    The other four are kept apart so that a broken grader, a broken reference or a policy that stopped
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
"""Verdicts that say nothing of the completion: grading itself failed."""


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
    """The sampling limit; only the overlong term reads it."""
    problem: str = ""
    """The problem as asked; only a user's reward function reads it."""
    prompt: str = ""
    r"""The text that the completion goes on with. Its end matters: where it leaves a thought open (`…<think>\n`),
    the completion begins inside it."""
    truncated: bool = False
    """Whether `max_tokens` cut it off; only `mask_truncated` reads it."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The problem's other columns, of what JSON can hold; only a user's reward function reads them."""
    entry: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """From a generated task, which its own scorer judges: `task`, `settings`, and the library's `entry`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeResult:
    """The judgement of one item.

    Example: `GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="72", terms={}, detail="same_text")`
    """

    verdict: Verdict
    reward: float
    """1.0 when correct, else 0.0, plus the shaping terms that are switched on; 0.0 where it is not scored."""
    extracted: str | None
    """The final answer as read from the completion, or None where there is none."""
    terms: dict[str, float] = field(default_factory=dict)
    """Value of each shaping term that was added to the reward, and of `partial`: what a task's scorer gives for an
    answer that is not wholly right."""
    detail: str = ""
    """The rule that decided, or the text of the error."""
    scored: bool = True
    """Whether the reward says anything of the completion: not where grading failed (`timeout`, `error`), unless
    `mask_unscored` is off; where a reward function returned None; or, with `mask_truncated`, where it was cut off. What
    is not scored is learned nothing from, and counts in no mean of rewards."""
