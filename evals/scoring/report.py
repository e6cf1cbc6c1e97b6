"""Outcomes of a suite → the report of an evaluation, and the comparison of two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evals.scoring.estimators import Difference, average, maj_at_k, mean_interval, paired, pass_at_k
from evals.scoring.outcomes import Outcome, Sample
from evals.scoring.votes import count_votes
from evals.suites import Suite, digest_of
from rewards import Grader, Verdict
from rollout.config import SamplingConfig
from rollout.files.durable import write_synced
from rollout.types import BASE, AdapterRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems and its 95 % interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartScore:
    """The score on the problems of one level or subject."""

    problems: int
    avg: float
    interval: tuple[float, float]
    tokens_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """The scores of one adapter on one suite. A run writes it as `evals/<suite>-<adapter>.json`."""

    suite: str
    suite_version: int
    data_sha256: str
    """Digest of the problems that were asked."""
    adapter: str
    """`AdapterRef.key`, or the name given on the command line, or `base`."""
    adapter_sha256: str | None
    """`AdapterRef.sha256` of the version that was measured; None for the base model."""
    problems: int
    samples: int
    """Completions per problem."""
    avg: float
    interval: tuple[float, float]
    """The 95 % interval."""
    pass_at: dict[int, Estimate]
    """Unbiased pass@k for every k."""
    maj_at: dict[int, Estimate]
    """maj@k for powers of two and for all samples."""
    tokens_mean: float
    tokens_mean_correct: float | None
    """None if nothing was correct."""
    tokens_mean_wrong: float | None
    """Mean over all completions that are not correct; None if all were."""
    truncated_frac: float
    verdicts: dict[str, float]
    """Verdict → its fraction of the completions."""
    by_level: dict[str, PartScore]
    by_subject: dict[str, PartScore]
    tokens_per_s: float | None
    """Completion tokens per second of sampling; None if not measured."""
    temperature: float
    top_p: float
    max_tokens: int
    top_k: int | None = None
    min_p: float = 0.0

    def metrics(self) -> dict[str, float]:
        """The report's entries in metrics.jsonl on a step that evaluates."""
        name = f"eval/{self.suite}"
        found = {
            f"{name}/avg": self.avg,
            f"{name}/low": self.interval[0],
            f"{name}/high": self.interval[1],
            f"{name}/tokens_mean": self.tokens_mean,
            f"{name}/truncated_frac": self.truncated_frac,
        }
        for kind, tokens in (("correct", self.tokens_mean_correct), ("wrong", self.tokens_mean_wrong)):
            if tokens is not None:
                found[f"{name}/tokens_mean_{kind}"] = tokens
        if self.samples > 1:
            found[f"{name}/pass_at_{self.samples}"] = self.pass_at[self.samples].value
            found[f"{name}/maj_at_{self.samples}"] = self.maj_at[self.samples].value
        return found

    def write(self, directory: Path) -> Path:
        path = directory / f"{self.suite}-{self.adapter}.json"
        write_synced(path, json.dumps(asdict(self), indent=2) + "\n")
        return path


def report_on(
    suite: Suite,
    outcomes: Sequence[Outcome],
    sampling: SamplingConfig,
    grader: Grader,
    adapter: AdapterRef | None,
    label: str | None = None,
) -> EvalReport:
    """The report on outcomes, all with the same number of samples, of an adapter or, if None, of the base model.

    `label` is its name in the report, by default its key. Raises `ValueError` if the outcomes are of another adapter.
    """
    key = adapter.key if adapter else BASE
    strangers = {outcome.adapter for outcome in outcomes} - {key}
    if strangers:
        raise ValueError(f"completions of {', '.join(sorted(strangers))} cannot measure {key}")
    samples = [sample for outcome in outcomes for sample in outcome.samples]
    correct_PK = correctness(outcomes)
    score, interval = average(correct_PK)
    verdicts = Counter(sample.verdict for sample in samples)
    spent_s = sum(outcome.sampling_s for outcome in outcomes)
    return EvalReport(
        suite=suite.name,
        suite_version=suite.version,
        data_sha256=digest_of([outcome.problem for outcome in outcomes]),
        adapter=label or key,
        adapter_sha256=adapter.sha256 if adapter else None,
        problems=len(outcomes),
        samples=correct_PK.shape[1],
        avg=score,
        interval=interval,
        pass_at=_estimates(pass_at_k(correct_PK), range(1, correct_PK.shape[1] + 1)),
        maj_at=_majorities(outcomes, correct_PK.shape[1], grader),
        tokens_mean=float(np.mean([sample.tokens for sample in samples])),
        tokens_mean_correct=_tokens_mean(samples, correct=True),
        tokens_mean_wrong=_tokens_mean(samples, correct=False),
        truncated_frac=float(np.mean([sample.finish_reason == "length" for sample in samples])),
        verdicts={verdict.value: verdicts[verdict] / len(samples) for verdict in Verdict},
        by_level=_parts(outcomes, lambda outcome: outcome.problem.level),
        by_subject=_parts(outcomes, lambda outcome: outcome.problem.subject),
        tokens_per_s=sum(sample.tokens for sample in samples) / spent_s if spent_s else None,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
    )


def compare(first: Sequence[Outcome], second: Sequence[Outcome]) -> Difference:
    """The first score minus the second, on the same problems."""
    assert [outcome.problem.id for outcome in first] == [outcome.problem.id for outcome in second]
    return paired(correctness(first).mean(axis=1), correctness(second).mean(axis=1))


def correctness(outcomes: Sequence[Outcome]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """[P, K]: which samples are correct."""
    return np.array([[sample.correct for sample in outcome.samples] for outcome in outcomes])


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, … up to the number of samples, and that number itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _majorities(outcomes: Sequence[Outcome], samples: int, grader: Grader) -> dict[int, Estimate]:
    votes = count_votes(outcomes, grader)
    ks = powers_of_two(samples)
    return _estimates(np.array([[maj_at_k(one, k) for k in ks] for one in votes]), ks)


def _estimates(scores_PK: np.ndarray[tuple[int, int], np.dtype[np.float64]], ks: Sequence[int]) -> dict[int, Estimate]:
    """One estimate per column."""
    return {
        k: Estimate(value=float(scores_P.mean()), interval=mean_interval(scores_P))
        for k, scores_P in zip(ks, scores_PK.T, strict=True)
    }


def _tokens_mean(samples: Sequence[Sample], *, correct: bool) -> float | None:
    tokens = [sample.tokens for sample in samples if sample.correct == correct]
    return float(np.mean(tokens)) if tokens else None


def _parts(outcomes: Sequence[Outcome], name_of: Callable[[Outcome], str]) -> dict[str, PartScore]:
    """The score of each level or subject that `name_of` gives the problems, sorted by the numbers in the names."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if name_of(outcome):
            groups.setdefault(name_of(outcome), []).append(outcome)
    parts = {}
    for name in sorted(groups, key=_by_number):
        score, interval = average(correctness(groups[name]))
        tokens = [sample.tokens for outcome in groups[name] for sample in outcome.samples]
        parts[name] = PartScore(
            problems=len(groups[name]), avg=score, interval=interval, tokens_mean=float(np.mean(tokens))
        )
    return parts


def _by_number(name: str) -> tuple[float, str]:
    last = name.rpartition(" ")[2]  # "5", "Level 5", "6.5"
    try:
        return float(last), name
    except ValueError:
        return float("inf"), name
