"""Suites × policies → outcomes: sampled batch by batch from one engine, each kept as soon as it is graded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.partial_results import PartialResults
from evals.policies import Policy
from evals.prepare import PreparedSuite
from evals.scoring.outcomes import Outcome, grade_groups
from rewards import Grader
from rollout.engine import Engine
from rollout.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Problems that are sampled together.

    Where batches begin does not depend on what is finished already: a completion may depend on what it shares its batch
    with, and an interrupted evaluation shall end like one that was not.
    """

    prepared: PreparedSuite
    policy: Policy
    prompts: tuple[Prompt, ...]


def batches_of(suites: Sequence[PreparedSuite], policies: Sequence[Policy], completions: int) -> list[Batch]:
    """All the work, in batches of about so many completions."""
    batches = []
    for prepared in suites:
        size = max(1, completions // prepared.sampling.n)
        for policy in policies:
            for start in range(0, len(prepared.prompts), size):
                batches.append(Batch(prepared=prepared, policy=policy, prompts=prepared.prompts[start : start + size]))
    return batches


def unfinished(batches: Sequence[Batch], partial: PartialResults) -> list[Batch]:
    """Batches of which a problem is not among the partial results."""
    return [
        batch
        for batch in batches
        if not all(partial.find(batch.prepared.suite.name, batch.policy.label, p.problem.id) for p in batch.prompts)
    ]


def sample(
    batches: Sequence[Batch],
    engine: Engine,
    grader: Grader,
    partial: PartialResults,
    seed: int,
    progress: Callable[[Batch, list[Outcome]], Any],
) -> None:
    """Sample, grade and keep every batch; `progress` is told of each.

    A problem's samples have seeds of their own, the same for every policy: differences owe less to chance.
    """
    for batch in batches:
        name = batch.prepared.suite.name
        seeds = [f"{seed}/{name}/{prompt.problem.id}" for prompt in batch.prompts]
        start = time.monotonic()
        groups = engine.generate(batch.prompts, batch.prepared.sampling, batch.policy.ref, seeds)
        outcomes = grade_groups(groups, grader, time.monotonic() - start)
        partial.add(name, batch.policy.label, outcomes)
        progress(batch, outcomes)


def outcomes_of(prepared: PreparedSuite, policy: Policy, partial: PartialResults) -> list[Outcome]:
    """Everything a policy answered to a suite, in the suite's order. All of it must be finished."""
    outcomes = []
    for prompt in prepared.prompts:
        record = partial.find(prepared.suite.name, policy.label, prompt.problem.id)
        assert record is not None, f"{prompt.problem.id} was never sampled"
        outcomes.append(Outcome.from_json(record, prompt.problem))
    return outcomes
