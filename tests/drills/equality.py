"""Two run directories → what differs between them, apart from times and lost workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_engine.run.records import read_metrics
from rollout.adapters import sha256_of

# Compared byte for byte: weights, Adam's moments, the random state, completions.
WHOLE = ("adapters/v*/adapter_model.safetensors", "checkpoints/step*/learner.safetensors", "rollouts/*")
LINKS = ("adapters/latest", "adapters/best")
# Metrics that depend on the clock, or on what happened to the workers.
TIMES = ("time/", "throughput/", "memory/", "workers/")


def different(run: Path, other: Path) -> list[str]:
    """The names of what differs; empty if the runs are the same."""
    found = []
    for pattern in WHOLE:
        mine, theirs = (
            {str(path.relative_to(root)): sha256_of(path) for path in root.glob(pattern)} for root in (run, other)
        )
        found += [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    found += [link for link in LINKS if (run / link).readlink() != (other / link).readlink()]
    if timeless(run) != timeless(other):
        found.append("metrics.jsonl")
    if scores(run) != scores(other):
        found.append("evals")
    return sorted(found)


def timeless(run: Path) -> list[dict[str, float]]:
    """The metrics that depend on no clock and no accident."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in read_metrics(run)]


def scores(run: Path) -> dict[str, dict[str, Any]]:
    reports = {path.name: json.loads(path.read_text()) for path in (run / "evals").glob("*.json")}
    return {
        name: {k: v for k, v in report.items() if k not in ("tokens_per_s", "adapter_sha256")}
        for name, report in reports.items()
    }
