"""A run directory → the figures of its steps, for the stages that run one of the project's own commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_contact.figures import noted

Row = dict[str, Any]
PHASES = ("rollout_s", "learn_s", "sync_s", "step_s")


def metrics_of(run: Path) -> list[Row]:
    """The lines of a run's metrics.jsonl; none if it does not exist."""
    return noted(run / "metrics.jsonl")


def steps_of(run: Path, name: str) -> list[Row]:
    """A row for the first step, in which kernels are compiled and tuned, and one with the medians of later steps."""
    lines = [line for line in metrics_of(run) if line["step"] > 0]
    parts = {"first step": lines[:1], "steps after it, medians": lines[1:]}
    return [{"kind": "step", "run": name, "which": which, **_medians(part)} for which, part in parts.items() if part]


def _medians(lines: Sequence[Mapping[str, float]]) -> Row:
    def of(metric: str) -> float | None:
        values = [line[metric] for line in lines if metric in line]
        return median(values) if values else None

    seconds = {phase: of(f"time/{phase}") for phase in PHASES}
    memory = [value for line in lines for name, value in line.items() if name.startswith("memory/")]
    return {
        **seconds,
        "tokens_per_s": of("throughput/tokens_per_s"),
        "sampling_tokens_per_s": _sampled(lines),
        "gap_max": of("sampler/logprob_gap_max"),
        "kl": of("sampler/kl"),
        "peak_gib": max(memory, default=None),
    }


def _sampled(lines: Sequence[Mapping[str, float]]) -> float | None:
    """Completion tokens per second of sampling: the recorded throughput refers to the whole step."""
    values = [
        line["throughput/tokens_per_s"] * line["time/step_s"] / line["time/rollout_s"]
        for line in lines
        if line.get("time/rollout_s")
    ]
    return median(values) if values else None


def trained(run: Path, name: str) -> list[Row]:
    """What a quickstart run has learned, and its steps."""
    lines = metrics_of(run)
    scores = [line["eval/held_out/avg"] for line in lines if "eval/held_out/avg" in line]
    if not scores:
        return steps_of(run, name)
    figures = {"steps": lines[-1]["step"], "held_out_before": scores[0], "held_out_after": scores[-1]}
    return [{"kind": "trained", "run": name, **figures}, *steps_of(run, name)]


def resumed(run: Path, name: str, steps: int, more: int) -> list[Row]:
    """Whether each step up to `steps` is recorded exactly once, and a row for the last `more`, which were resumed."""
    lines = [line for line in metrics_of(run) if line["step"] > 0]
    found = [line["step"] for line in lines]
    later = [line for line in lines if line["step"] > steps - more]
    which = "resumed, the sampler asleep while the learner works"
    rows = [{"kind": "step", "run": name, "which": which, **_medians(later)}] if later else []
    return [{"kind": "resumed", "steps": len(found), "whole": found == list(range(1, steps + 1))}, *rows]
