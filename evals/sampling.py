"""Suites × policies → outcomes: sampled in batches from one engine, each batch saved as soon as it is graded."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from evals.partial_results import PartialResults
from evals.policies import Policy
from evals.prepare import PreparedSuite
from evals.scoring.outcomes import Outcome, grade_groups
from rewards import Grader
from rollout.engine import InFlight, StreamingEngine
from rollout.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Problems that are sampled together.

    The split into batches does not depend on what is already finished: a completion may depend on the others in its
    batch, and an interrupted evaluation must end with the same results as an uninterrupted one.
    """

    prepared: PreparedSuite
    policy: Policy
    prompts: tuple[Prompt, ...]


def batches_of(suites: Sequence[PreparedSuite], policies: Sequence[Policy], completions: int) -> list[Batch]:
    """All the work, in batches of about `completions` completions."""
    batches = []
    for prepared in suites:
        size = max(1, completions // prepared.sampling.n)
        for policy in policies:
            for start in range(0, len(prepared.prompts), size):
                batches.append(Batch(prepared=prepared, policy=policy, prompts=prepared.prompts[start : start + size]))
    return batches


def unfinished(batches: Sequence[Batch], partial: PartialResults) -> list[Batch]:
    """The batches with a problem that is not among the partial results."""
    return [
        batch
        for batch in batches
        if not all(partial.find(batch.prepared.suite.name, batch.policy.label, p.problem.id) for p in batch.prompts)
    ]


def sample(
    batches: Sequence[Batch],
    engine: StreamingEngine,
    grader: Grader,
    partial: PartialResults,
    seed: int,
    progress: Callable[[Batch, list[Outcome]], Any],
    at_once: int = 1,
) -> None:
    """Sample, grade and save every batch, and call `progress` after each.

    The next batch starts when fewer than `at_once` completions are being sampled: with 1, once the one before it is
    saved. A finished batch is graded while others are sampled. Each problem has its own seeds, which are the same for
    every policy, so that differences between policies depend less on chance.
    """
    waiting, going = deque(batches), dict[InFlight, Batch]()
    spent_s = defaultdict[InFlight, float](float)
    graded = deque[tuple[Batch, Future[list[Outcome]]]]()
    thread = ThreadPoolExecutor(1, "grading")
    try:
        while waiting or going or graded:
            while graded and (graded[0][1].done() or not going):
                batch, outcomes = graded.popleft()
                partial.add(batch.prepared.suite.name, batch.policy.label, outcomes.result())
                progress(batch, outcomes.result())
            while waiting and sum(one.left for one in going) < at_once:
                batch = waiting.popleft()
                going[begin(batch, engine, seed)] = batch
            left, start = {one: one.left for one in going}, time.monotonic()
            there = engine.advance()
            for one, count in left.items():  # concurrent batches share the time in proportion to their completions
                spent_s[one] += (time.monotonic() - start) * count / sum(left.values())
            for one in there:
                batch, groups, limit = going[one], one.groups(), going.pop(one).prepared.sampling.max_tokens
                graded.append((batch, thread.submit(grade_groups, groups, grader, limit, spent_s.pop(one))))
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def begin(batch: Batch, engine: StreamingEngine, seed: int) -> InFlight:
    seeds = [f"{seed}/{batch.prepared.suite.name}/{prompt.problem.id}" for prompt in batch.prompts]
    return engine.begin(batch.prompts, batch.prepared.sampling, batch.policy.ref, seeds)


def outcomes_of(prepared: PreparedSuite, policy: Policy, partial: PartialResults) -> list[Outcome]:
    """All outcomes of a policy on a suite, in the suite's order. All must be finished."""
    outcomes = []
    for prompt in prepared.prompts:
        record = partial.find(prepared.suite.name, policy.label, prompt.problem.id)
        assert record is not None, f"{prompt.problem.id} was never sampled"
        outcomes.append(Outcome.from_json(record, prompt.problem))
    return outcomes
