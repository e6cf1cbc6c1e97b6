"""Task scores and divergences of all policies → one table, base → adapter, and the JSON next to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table

from datafiles.markdown import as_markdown
from evals.forgetting.divergence import Divergence

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """The score of one model on one task."""

    task: str
    metric: str
    """`acc_norm`, or `acc` if the task has no `acc_norm`."""
    scores_D: NDArray[np.float64]
    """[D] The score of each document, in the task's order, so that two models are compared document by document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """The results of the base model or of one adapter."""

    label: str
    sha256: str | None
    """The digest of the adapter's manifest; None for the base model."""
    scores: tuple[TaskScore, ...]
    divergence: Divergence | None
    """None for the base model, and if no prompts were given."""
    scoring_gap: float | None
    """½·mean((log q − log p)²) between the engine's sampling and scoring, in nats."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and its standard error, which is nan for a single document."""

    value: float
    error: float


def mean_of(values_D: NDArray[np.float64]) -> Mean:
    """The mean over documents."""
    error = values_D.std(ddof=1) / math.sqrt(len(values_D)) if len(values_D) > 1 else math.nan
    return Mean(float(values_D.mean()), float(error))


def mean_of_means(means: Sequence[Mean]) -> Mean:
    """The mean over tasks, all with the same weight. Their documents differ, so their errors are independent."""
    return Mean(
        sum(mean.value for mean in means) / len(means),
        math.sqrt(sum(mean.error**2 for mean in means)) / len(means),
    )


def accuracies(policy: PolicyResult) -> list[Mean]:
    return [mean_of(score.scores_D) for score in policy.scores]


def changes(policy: PolicyResult, base: PolicyResult) -> list[Mean]:
    """The accuracy minus the base's on each task, document by document, so that documents that are hard for both do not
    add to the error."""
    return [mean_of(one.scores_D - other.scores_D) for one, other in zip(policy.scores, base.scores, strict=True)]


def grid(policies: Sequence[PolicyResult]) -> list[Row]:
    """The table's rows, the header first. The base model is the first policy."""
    base = policies[0]
    tasks = [f"{score.task} ({score.metric})" for score in base.scores]
    head = ["", *tasks, *(["mean", "change"] if tasks else [])]
    if any(policy.divergence for policy in policies):
        head += ["KL(base‖policy), nats per token (95 %)", "by k3 (95 %)"]
    rows = [tuple(head)]
    for policy in policies:
        row = [policy.label, *(percent(mean) for mean in accuracies(policy))]
        if tasks:
            change = "" if policy is base else points(mean_of_means(changes(policy, base)))
            row += [percent(mean_of_means(accuracies(policy))), change]
        if found := policy.divergence:
            row += [estimate(found.kl, found.interval), estimate(found.kl_k3, found.interval_k3)]
        rows.append(tuple(row + [""] * (len(head) - len(row))))
    return rows


def table(policies: Sequence[PolicyResult]) -> Table:
    head, *rows = grid(policies)
    shown = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(head):
        shown.add_column(escape(name), justify="right" if number else "left")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def markdown(policies: Sequence[PolicyResult]) -> str:
    head, *rows = (f"| {' | '.join(map(as_markdown, row))} |" for row in grid(policies))
    rule = "|".join(["---", *["---:"] * (len(grid(policies)[0]) - 1)])
    return "\n".join([head, f"|{rule}|", *rows]) + "\n"


def to_json(policies: Sequence[PolicyResult]) -> list[dict[str, Any]]:
    """One object per policy, in fractions and nats; null for the standard error of a single document and the interval
    of a single prompt."""
    base = policies[0]
    found = []
    for policy in policies:
        differences = changes(policy, base)
        tasks = {
            score.task: {
                "metric": score.metric,
                "documents": len(score.scores_D),
                **_pair("accuracy", accuracy),
                **({} if policy is base else _pair("change", change)),
            }
            for score, accuracy, change in zip(policy.scores, accuracies(policy), differences, strict=True)
        }
        mean = _pair("accuracy", mean_of_means(accuracies(policy))) if tasks else None
        if mean and policy is not base:
            mean |= _pair("change", mean_of_means(differences))
        found.append(
            {
                "label": policy.label,
                "sha256": policy.sha256,
                "tasks": tasks,
                "mean": mean,
                "divergence": asdict(policy.divergence) if policy.divergence else None,
                "scoring_gap": policy.scoring_gap,
            }
        )
    return found


def _pair(name: str, mean: Mean) -> dict[str, float | None]:
    return {name: mean.value, f"{name}_standard_error": None if math.isnan(mean.error) else mean.error}


def percent(mean: Mean) -> str:
    return f"{100 * mean.value:.1f}{_error(mean)} %"


def points(mean: Mean) -> str:
    return f"{100 * mean.value:+.1f}{_error(mean)}"


def _error(mean: Mean) -> str:
    return "" if math.isnan(mean.error) else f" ± {100 * mean.error:.1f}"


def estimate(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3g}" + (f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else "")
