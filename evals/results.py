"""Outcomes of an evaluation → its files: a JSON report, Markdown tables next to it, and on request the samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.contamination import Contamination
from evals.partial_results import PartialResults
from evals.policies import Policy
from evals.prepare import PreparedSuite
from evals.sampling import outcomes_of
from evals.scoring.estimators import Difference
from evals.scoring.report import EvalReport, compare, report_on
from evals.suites import digest_of
from rewards import Grader
from rollout.files.durable import write_rows
from rollout.types import BASE

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """All results of one suite."""

    prepared: PreparedSuite
    reports: tuple[EvalReport, ...]
    differences: dict[str, Difference]
    """Label → the adapter's difference from the base model, if that was measured."""
    contamination: Contamination | None

    def to_json(self) -> dict[str, Any]:
        return {
            **describe(self.prepared),
            "rows": [asdict(report) for report in self.reports],
            "minus_base": {label: asdict(difference) for label, difference in self.differences.items()},
            "contamination": asdict(self.contamination) if self.contamination is not None else None,
            "remarks": self.prepared.remarks,
        }


def describe(prepared: PreparedSuite) -> dict[str, Any]:
    """Everything that a score on the suite depends on, apart from the model."""
    problems = [prompt.problem for prompt in prepared.prompts]
    asked = [[prompt.problem.id, prompt.text, prompt.problem.answer] for prompt in prepared.prompts]
    return {
        "suite": prepared.suite.name,
        "suite_version": prepared.suite.version,
        "data": {
            "origin": prepared.origin,
            "problems": len(problems),
            "sha256": digest_of(problems),
            # Partial results go by ids, which may be line numbers, and batches by the order.
            "asked_sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        },
        "prompt": prepared.prompt.model_dump(mode="json"),
        "sampling": prepared.sampling.model_dump(mode="json"),
        "answer_forms": list(prepared.answer_forms),
    }


def result_of(
    prepared: PreparedSuite,
    policies: Sequence[Policy],
    partial: PartialResults,
    grader: Grader,
    contamination: Contamination | None,
) -> SuiteResult:
    outcomes = {policy.label: outcomes_of(prepared, policy, partial) for policy in policies}
    reports = tuple(
        report_on(prepared.suite, outcomes[one.label], prepared.sampling, grader, adapter=one.ref, label=one.label)
        for one in policies
    )
    base = outcomes.get(BASE)
    differences = {label: compare(mine, base) for label, mine in outcomes.items() if label != BASE} if base else {}
    return SuiteResult(prepared=prepared, reports=reports, differences=differences, contamination=contamination)


def write_samples(
    path: Path, suites: Sequence[PreparedSuite], policies: Sequence[Policy], partial: PartialResults
) -> None:
    """Write every sample as JSON Lines, with the field names of rollouts, so that `rewards.audit` can read the file."""
    write_rows(path, (row for prepared in suites for policy in policies for row in _rows(prepared, policy, partial)))


def _rows(prepared: PreparedSuite, policy: Policy, partial: PartialResults) -> Iterator[dict[str, Any]]:
    for prompt, outcome in zip(prepared.prompts, outcomes_of(prepared, policy, partial), strict=True):
        problem = outcome.problem
        for index, sample in enumerate(outcome.samples):
            yield {
                "suite": prepared.suite.name,
                "adapter": policy.label,
                "problem_id": problem.id,
                "sample": index,
                "problem": problem.text,
                "reference": problem.answer,
                "prompt": prompt.text,
                "completion": sample.text,
                "extracted": sample.extracted,
                "verdict": sample.verdict.value,
                "detail": sample.detail,
                "completion_tokens": sample.tokens,
                "finish_reason": sample.finish_reason,
            }
