"""Suites × contenders → outcomes: sampled batch by batch from one engine, each kept as soon as it is graded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.contenders import Contender
from evals.ledger import Ledger
from evals.scoring.outcomes import Outcome, grade_groups
from evals.suites import Suite
from rewards import Grader
from rollout.config import PromptConfig, SamplingConfig
from rollout.engine import Engine
from rollout.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """A suite as it is really asked."""

    suite: Suite
    origin: str
    """Where the problems were read from."""
    prompts: tuple[Prompt, ...]
    prompt: PromptConfig
    sampling: SamplingConfig
    """With the template's stop strings."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Problems that are sampled together.

    Where batches begin does not depend on what is finished already: a completion may depend on what it shares its batch
    with, and an interrupted evaluation shall end like one that was not.
    """

    exam: Exam
    contender: Contender
    prompts: tuple[Prompt, ...]


def batches_of(exams: Sequence[Exam], contenders: Sequence[Contender], completions: int) -> list[Batch]:
    """All the work, in batches of about so many completions."""
    batches = []
    for exam in exams:
        size = max(1, completions // exam.sampling.n)
        for contender in contenders:
            for start in range(0, len(exam.prompts), size):
                batches.append(Batch(exam=exam, contender=contender, prompts=exam.prompts[start : start + size]))
    return batches


def unfinished(batches: Sequence[Batch], ledger: Ledger) -> list[Batch]:
    """Batches of which a problem is not in the ledger."""
    return [
        batch
        for batch in batches
        if not all(ledger.find(batch.exam.suite.name, batch.contender.label, p.problem.id) for p in batch.prompts)
    ]


def sample(
    batches: Sequence[Batch],
    engine: Engine,
    grader: Grader,
    ledger: Ledger,
    seed: int,
    progress: Callable[[Batch, list[Outcome]], Any],
) -> None:
    """Sample, grade and keep every batch; `progress` is told of each.

    A problem's samples have seeds of their own, the same for every contender: differences owe less to chance.
    """
    for batch in batches:
        name = batch.exam.suite.name
        seeds = [f"{seed}/{name}/{prompt.problem.id}" for prompt in batch.prompts]
        start = time.monotonic()
        groups = engine.generate(batch.prompts, batch.exam.sampling, batch.contender.ref, seeds)
        outcomes = grade_groups(groups, grader, time.monotonic() - start)
        ledger.add(name, batch.contender.label, outcomes)
        progress(batch, outcomes)


def outcomes_of(exam: Exam, contender: Contender, ledger: Ledger) -> list[Outcome]:
    """Everything a contender answered to a suite, in the suite's order. All of it must be finished."""
    outcomes = []
    for prompt in exam.prompts:
        record = ledger.find(exam.suite.name, contender.label, prompt.problem.id)
        assert record is not None, f"{prompt.problem.id} was never sampled"
        outcomes.append(Outcome.from_json(record, prompt.problem))
    return outcomes
