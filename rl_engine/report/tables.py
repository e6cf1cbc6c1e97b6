"""Runs → the rows of the page's tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from statistics import median
from typing import Any

from rl_engine.config import Config
from rl_engine.config.fields import fields
from rl_engine.config.sft import SftConfig
from rl_engine.report.charts import suites_of
from rl_engine.report.shown_run import ShownRun
from rl_engine.run.bottleneck import bottleneck_line
from rl_engine.run.records import ASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteChange:
    """A run's first, last and best score on one suite, among those that were asked as the last was: lines of its
    metrics with the prefix `eval/<suite>/` removed."""

    run: int
    suite: str
    first: Mapping[str, float]
    last: Mapping[str, float]
    best: Mapping[str, float]
    asked_otherwise: bool
    """Whether earlier scores are left out, because a resumption changed how the suite is asked."""


def overview_of(run: ShownRun) -> dict[str, str]:
    """What ran, how far it got and how fast it was."""
    settings = run.settings
    lines = [line for line in run.lines if "throughput/tokens_per_s" in line]
    lora = f"LoRA of rank {settings['lora.rank']} on {plain(settings['lora.targets'])}"
    both = {
        "Model": f"{settings['model.name']}, {settings['model.dtype']}",
        "Trained": lora if settings["method"] == "lora" else "every weight",
        "Data": str(settings["data.path"] or settings["data.source"]),
        "Objective": "log loss" if run.is_supervised else str(settings["loss.name"]).replace("_", " "),
        "Learning rate": str(settings["optim.lr"]),
        "Steps": f"{run.step:,}" if run.steps is None else f"{run.step:,} of {run.steps:,}",
        "Tokens/s, median": f"{median(line['throughput/tokens_per_s'] for line in lines):,.0f}" if lines else "—",
    }
    if run.is_supervised:
        return both | {"Examples": f"{settings['train.batch_size']} a step, ≤ {settings['data.max_tokens']:,} tokens"}
    return both | {
        "Problems × samples": f"{settings['train.problems_per_step']} × {settings['sampling.n']}",
        "Token limit": f"{settings['sampling.max_tokens']:,}",
        "Training time": str(timedelta(seconds=round(sum(max(0.0, line.get("time/step_s", 0.0)) for line in lines)))),
        "Bottleneck": bottleneck_line(run.lines, settings) or "—",
    }


def changes_of(runs: Sequence[ShownRun]) -> list[SuiteChange]:
    """The change on every suite of every run."""
    changes = []
    for index, run in enumerate(runs):
        for suite in suites_of({key for line in run.lines for key in line}):
            prefix = f"eval/{suite}/"
            lines = [line for line in run.lines if f"{prefix}avg" in line]
            scored = [
                # The ends of the interval are the score itself where a line has none.
                {"low": line[f"{prefix}avg"], "high": line[f"{prefix}avg"]}
                | {
                    key.removeprefix(prefix): value
                    for key, value in line.items()
                    if key.startswith((prefix, "step", "adapter/version"))
                }
                for line in lines
                if line.get(ASKED) == lines[-1].get(ASKED)
            ]
            best = max(scored, key=lambda score: score["avg"])
            otherwise = len(scored) < len(lines)
            first, last = scored[0], scored[-1]
            changes.append(
                SuiteChange(run=index, suite=suite, first=first, last=last, best=best, asked_otherwise=otherwise)
            )
    return changes


def conditions_of(run: ShownRun) -> list[tuple[str, str]]:
    """Conditions under which the run's adapters were scored: the columns of the adapter table."""
    return sorted({condition for adapter in run.adapters for condition in adapter.scores})


def differences_of(runs: Sequence[ShownRun]) -> dict[str, list[str]]:
    """Key → the runs' values, for configuration keys in which the runs differ; `—` if a run does not have the key.

    A run of an earlier version that lacks a key does not differ from a run that leaves it at its default.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "output_dir")
    known = defaults(supervised=all(run.is_supervised for run in runs))
    found = {}
    for key in keys:
        values = [run.settings.get(key, known.get(key, "—")) for run in runs]
        if any(value != values[0] for value in values):
            found[key] = [plain(run.settings.get(key, "—")) for run in runs]
    return found


@cache
def defaults(*, supervised: bool) -> Mapping[str, Any]:
    """Key → its default as in YAML; `required` if it has none."""
    return {
        key: "required" if info.is_required() else _as_json(info.get_default(call_default_factory=True))
        for key, info in fields(SftConfig if supervised else Config)
    }


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda one: one.model_dump(mode="json")))


def plain(value: Any) -> str:
    """A configuration value as it would be written in the file."""
    return value if isinstance(value, str) else json.dumps(value)
