"""A cell's run directory → its result; a sweep's results ↔ results.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datafiles.text import json_lines
from rl_engine.config.file import ConfigError
from rl_engine.config.hints import near
from rl_engine.run.records import METRICS, read_metrics
from rl_engine.sweep.config import ScoreConfig
from rollout.files.durable import write_synced

RESULTS = "results.jsonl"
CURVE_POINTS = 60
Curve = Sequence[tuple[int, float]]
"""(step, value), ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a cell. Example: `Result(cell="rank-1_optim.lr=0.001_seed=0", status="done", score=0.93, …)`"""

    cell: str
    arm: str
    axis_value: float
    seed: int
    overrides: Mapping[str, Any]
    config_hash: str
    status: Literal["done", "failed", "timeout"]
    score: float | None
    """Score over the evaluations that `score.at` selects; None unless done."""
    best: float | None
    """The run's best evaluation; None unless done."""
    curves: Mapping[str, Curve]
    """Metric → its values, thinned to `CURVE_POINTS`, as far as the run got."""
    seconds: float
    """Duration of the final attempt."""
    error: str
    """Why the cell is not done: a sentence, or the last lines of its log."""


def curve_of(lines: Iterable[Mapping[str, float]], metric: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[metric])) for line in lines if metric in line]


def thinned(curve: Curve, most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """At most `most` points of the curve, evenly spread, with the first and the last, to six significant digits."""
    last = len(curve) - 1
    picked = range(last + 1) if last < most else sorted({round(i * last / (most - 1)) for i in range(most)})
    return [(curve[i][0], float(f"{curve[i][1]:.6g}")) for i in picked if math.isfinite(curve[i][1])]


def scores_of(lines: Sequence[Mapping[str, float]], score: ScoreConfig) -> tuple[float, float]:
    """Return (score, best evaluation) of a run. Raises `ValueError` if the score is missing or not finite."""
    values = [value for _, value in curve_of(lines, score.metric)]
    if not values:
        names = sorted({name for line in lines for name in line})
        found = near(score.metric, names)
        hint = f"nearest: {found}" if found else f"it has {', '.join(names) or 'nothing'}"
        raise ValueError(f"{METRICS} has no {score.metric!r}; {hint}")
    if not math.isfinite(values[-1]):
        raise ValueError(f"the last value of {score.metric} is {values[-1]}")
    best = (max if score.mode == "max" else min)(value for value in values if math.isfinite(value))
    if score.at == "best":
        return best, best
    taken = values[-1:] if score.at == "last" else values[-score.at :]
    if not all(map(math.isfinite, taken)):
        raise ValueError(f"{score.metric} is infinite or NaN in one of the last {len(taken)} evaluations (score.at)")
    return math.fsum(taken) / len(taken), best


def measured(result: Result, run: Path, score: ScoreConfig, metrics: Sequence[str]) -> Result:
    """The result with scores and curves from the run's metrics.jsonl; a finished run without a score has failed."""
    lines = read_metrics(run)
    curves = {name: curve for name in metrics if (curve := thinned(curve_of(lines, name)))}
    result = replace(result, curves=curves, score=None, best=None)
    if result.status != "done":
        return result
    try:
        value, best = scores_of(lines, score)
    except ValueError as error:
        return replace(result, status="failed", error=str(error))
    return replace(result, score=value, best=best)


@dataclass
class Results:
    """The results by cell, and the file that holds them: one JSON object per line, replaced atomically."""

    path: Path
    by_cell: dict[str, Result] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.path.is_file():
            try:
                results = [parsed(values) for values in json_lines(self.path)]
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"output_dir: {self.path} does not hold the results of a sweep: {error}") from error
            self.by_cell = {result.cell: result for result in results}

    def add(self, result: Result) -> None:
        self.by_cell[result.cell] = result
        self.write()

    def forget_failed(self) -> None:
        """Make failed cells due again; the file is not changed yet."""
        self.by_cell = {name: result for name, result in self.by_cell.items() if result.status == "done"}

    def write(self) -> None:
        write_synced(self.path, "".join(json.dumps(asdict(result)) + "\n" for result in self.by_cell.values()))


def parsed(values: Mapping[str, Any]) -> Result:
    """A result from its JSON object. Raises `TypeError` or `KeyError` if it is not one."""
    curves = {name: [(step, value) for step, value in curve] for name, curve in values["curves"].items()}
    return Result(**{**values, "curves": curves})
