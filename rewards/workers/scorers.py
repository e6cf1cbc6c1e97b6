"""Generated tasks → their own scorers, created once in the fork server so that every worker starts with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from datafiles.tasks import Task, open_task, unpacked
from rewards.extraction.extract import Refused, extract
from rewards.judge import Judgement
from rewards.types import Verdict
from rewards.workers import wire

SCORERS: dict[str, Any] = {}
"""Each task's dataset, by the task's key."""
# LaTeX that models put around words in a box; the scorers do not know LaTeX.
_TEXT = re.compile(r"\\(?:text|textbf|textit|texttt|mathrm|mbox)\s*\{(?P<words>[^{}]*)\}|\$(?P<formula>[^$]*)\$")


def load(tasks: Sequence[wire.Message]) -> None:
    """Create the tasks' datasets. Raises `TaskError` for a task that is not available."""
    for one in tasks:
        task = Task(name=one["name"], settings=one["settings"])
        SCORERS[task.key] = open_task(task, seed=0, size=1)


def score(entry: wire.Message, answer: str | None) -> float:
    """The score that the task's own scorer gives an answer to this entry.

    Raises whatever the scorer raises, and `TypeError` if the score is not a number.
    """
    task = Task(name=entry["task"], settings=entry["settings"])
    if task.key not in SCORERS:
        raise LookupError(f"the grader was not told of the task {task.name} with these settings")
    value = SCORERS[task.key].score_answer(answer, unpacked(entry["entry"]))
    if not isinstance(value, int | float) or value != value:
        raise TypeError(f"the scorer of {task.name} returned {value!r}: expected a number")
    return float(value)


def judge_task(completion: str, entry: wire.Message, *, forms: tuple[str, ...], opened: str) -> tuple[Judgement, float]:
    """The judgement of a whole completion, and its score. An answer with a score of 1 or more is correct."""
    found = extract(opened + completion, forms)
    if isinstance(found, Refused):
        given = found.answer is not None and found.rule != "empty_box"
        verdict = Verdict.INCORRECT if given else Verdict.NO_ANSWER
        return Judgement(verdict, found.answer if given else None, found.rule), 0.0
    return _judged(found.answer, entry)


def judge_own_answer(entry: wire.Message) -> tuple[Judgement, float]:
    """The judgement of the entry's own answer, which its scorer should give 1, and the score."""
    return _judged(unpacked(entry["entry"])["answer"], entry)


def _judged(answer: str, entry: wire.Message) -> tuple[Judgement, float]:
    plain = plain_text(answer)
    value = score(entry, plain)
    return Judgement(Verdict.CORRECT if value >= 1 else Verdict.INCORRECT, plain, "task_scorer"), value


def plain_text(answer: str) -> str:
    r"""An answer without the LaTeX around its words: `\text{yes}` and `$yes$` become yes."""
    answer = answer.strip()
    while match := _TEXT.fullmatch(answer):
        answer = (match["words"] if match["words"] is not None else match["formula"]).strip()
    return answer
