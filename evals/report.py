"""Graded completions of a suite → the report of one evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evals.estimators import average
from evals.suites import Suite
from rewards import GradeResult, Verdict
from rollout.config import SamplingConfig
from rollout.types import RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """What one adapter scores on one suite. Written as `evals/<suite>-<adapter>.json`."""

    suite: str
    suite_version: int
    adapter: str
    """`AdapterRef.key`, or `base`."""
    problems: int
    samples: int
    """Completions of each problem."""
    avg: float
    interval: tuple[float, float]
    """95 %."""
    tokens_mean: float
    tokens_mean_correct: float | None
    """None when nothing was correct."""
    truncated_frac: float
    verdicts: dict[str, float]
    """Fraction of each verdict."""
    by_level: dict[str, float]
    """avg of each level the suite has."""
    temperature: float
    max_tokens: int

    def metrics(self) -> dict[str, float]:
        """The entries of metrics.jsonl on a step that evaluates."""
        name = f"eval/{self.suite}"
        found = {
            f"{name}/avg": self.avg,
            f"{name}/low": self.interval[0],
            f"{name}/high": self.interval[1],
            f"{name}/tokens_mean": self.tokens_mean,
            f"{name}/truncated_frac": self.truncated_frac,
        }
        return found

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.suite}-{self.adapter}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path


def report_on(
    suite: Suite,
    adapter: str,
    sampling: SamplingConfig,
    groups: Sequence[RolloutGroup],
    results: Sequence[Sequence[GradeResult]],
) -> EvalReport:
    """The report on groups of equal size and their verdicts, in the same order."""
    correct_PK = np.array([[result.verdict is Verdict.CORRECT for result in row] for row in results])
    tokens_PK = np.array([[len(c.token_ids) for c in group.completions] for group in groups])
    truncated = [c.finish_reason == "length" for group in groups for c in group.completions]
    verdicts = Counter(result.verdict for row in results for result in row)
    levels: dict[str, list[float]] = {}
    for group, row in zip(groups, correct_PK, strict=True):
        if group.prompt.problem.level:
            levels.setdefault(group.prompt.problem.level, []).append(float(row.mean()))
    score, interval = average(correct_PK)
    return EvalReport(
        suite=suite.name,
        suite_version=suite.version,
        adapter=adapter,
        problems=len(groups),
        samples=correct_PK.shape[1],
        avg=score,
        interval=interval,
        tokens_mean=float(tokens_PK.mean()),
        tokens_mean_correct=float(tokens_PK[correct_PK].mean()) if correct_PK.any() else None,
        truncated_frac=float(np.mean(truncated)),
        verdicts={verdict.value: verdicts[verdict] / correct_PK.size for verdict in Verdict},
        by_level={level: float(np.mean(scores)) for level, scores in sorted(levels.items())},
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
    )
