"""A task's name and settings → its problems, by the library reasoning-gym.

Training and held-out problems have seeds of their own, and a problem's part is a function of its text besides, so that
no choice of seeds, settings or sizes can mix the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from datafiles.cells import for_json
from datafiles.tasks import Task, TaskError, open_task
from rollout.prompts.arithmetic import HELD_OUT_SHARE, Split
from rollout.types import Problem

REASONING_GYM = "reasoning_gym"
COUNT = 2048
"""Problems, where `data.limit` does not say how many."""
# Entry i of the library's dataset is made from its seed + i: each part draws from a half of the 32 bits of its own.
FIRST_SEED: dict[Split, int] = {"train": 0, "held_out": 2**31}
SEEDS, ENTRIES = 2**30, 2**30
# Draws without a new problem, in terms of those that there are: then the task is taken to have no more.
DRAWS_PER_PROBLEM, DRAWS_AT_LEAST = 20, 500
# What the library's generators are seen to raise where settings do not go together.
ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def task_of(name: str | None, settings: Mapping[str, Any], where: str = "data.") -> Task:
    """What `data.task` and `data.task_settings` name. Raises `TaskError` where there is no name."""
    if name is None:
        raise TaskError(f"{where}source is 'reasoning_gym', which needs {where}task, the name of a task")
    return Task(name=name, settings=settings)


def check_task(task: Task, where: str = "data.") -> None:
    """Raises `TaskError` for a task that cannot be had, or makes nothing; one entry is made."""
    _entry(open_task(task, seed=FIRST_SEED["train"], size=1, where=where), 0, task, where)


def split_of(text: str) -> Split:
    """The split that a problem belongs to, by its text as it is read, spacing aside."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    return "held_out" if digest[0] < 256 * HELD_OUT_SHARE else "train"


def task_problems(task: Task, split: Split, seed: int, where: str = "data.") -> Iterator[Problem]:
    """Different problems of the split, the same for the same arguments, until no more are found."""
    drawn = int.from_bytes(hashlib.sha256(f"{split}-{seed}".encode()).digest()[:8])
    made = open_task(task, seed=FIRST_SEED[split] + drawn % SEEDS, size=ENTRIES, where=where)
    seen: set[str] = set()
    last = 0
    for index in range(ENTRIES):
        if index - last > DRAWS_AT_LEAST + DRAWS_PER_PROBLEM * len(seen):
            return
        entry = _entry(made, index, task, where)
        text = entry["question"]
        digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
        if split_of(text) != split or digest in seen:
            continue
        seen.add(digest)
        last = index
        yield Problem(
            id=f"{task.name}-{digest[:16]}",
            text=text,
            # Of some tasks there is no one answer, only a scorer.
            answer=str(entry["answer"] or ""),
            subject=task.name,
            extra={"task": task.name, "metadata": for_json(entry["metadata"])},
            entry={"task": task.name, "settings": dict(task.settings), "entry": entry},
        )


def _entry(made: Any, index: int, task: Task, where: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = made[index]
    except ERRORS as error:
        raise TaskError(
            f"{where}task: {task.name} makes no problem with {json.dumps(task.given)}: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return entry
