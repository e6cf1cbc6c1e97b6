"""The run directory: configuration, metrics.jsonl, rollouts, and the services that mirror the metrics."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.config.run import LogConfig
from rl_engine.config.sft import SftConfig
from rollout.durable import naming, write_synced

if TYPE_CHECKING:
    from rl_engine.learner.groups import GradedGroup

METRICS = "metrics.jsonl"
MARKER = ".rl_engine"
"""A file that says of a directory that a run of ours writes in it, and may be replaced by another."""
WRITTEN = (
    MARKER,
    "config.yaml",
    METRICS,
    "rollouts",
    "adapters",
    "checkpoints",
    "evals",
    "merged",
    "tensorboard",
    "curves.png",
    "report.html",
)
"""All names that a run writes in its directory."""


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; a last line cut short by a crash is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds a line that is not JSON: {error.doc[:80]!r}") from error


@dataclass
class Records:
    """Writes what a run leaves behind. Main rank only."""

    run: Path
    config: Config | SftConfig
    _sinks: list[Any] = field(default_factory=list, init=False)

    def open(self, done: int) -> None:
        """Go on after step `done`, −1 for a new run: what was written of later steps will be made again."""
        self.run.mkdir(parents=True, exist_ok=True)
        # First of all: without it nobody may replace this directory, and with it alone there is no run yet.
        write_synced(self.run / MARKER, "Written by a run of rl_engine: --overwrite may replace it.\n")
        write_synced(self.run / "config.yaml", self.config.to_yaml())
        kept = [line for line in read_metrics(self.run) if line["step"] <= done]
        write_synced(self.run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        for path in (self.run / "rollouts").glob("step*.jsonl.gz"):
            if int(path.name[4:-9]) > done:
                path.unlink()
        self._sinks = open_sinks(self.run, self.config, done)

    def metrics(self, line: dict[str, float]) -> None:
        """Append one step's line, and hand it to every service."""
        path = self.run / METRICS
        with naming(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            _sync(file)
        for sink in self._sinks:
            sink.log(line)

    def rollouts(self, step: int, graded: Sequence[GradedGroup], advantages: Sequence[Sequence[float]]) -> None:
        """All completions of a step, one JSON object a line, compressed."""
        path = self.run / "rollouts" / f"step{step:06d}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        with naming(path), path.open("wb") as raw:
            self._write_rollouts(raw, step, graded, advantages)
            _sync(raw)

    def _write_rollouts(
        self, raw: IO[bytes], step: int, graded: Sequence[GradedGroup], advantages: Sequence[Sequence[float]]
    ) -> None:
        # No time stamp in the header: the same completions are the same bytes.
        with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
            for group, row in zip(graded, advantages, strict=True):
                prompt = group.rollout.prompt
                for index, (completion, result) in enumerate(
                    zip(group.rollout.completions, group.results, strict=True)
                ):
                    record = {
                        "step": step,
                        "problem_id": prompt.problem.id,
                        "sample": index,
                        "problem": prompt.problem.text,
                        "reference": prompt.problem.answer,
                        "prompt": prompt.text,
                        "completion": completion.text,
                        "extracted": result.extracted,
                        "verdict": result.verdict.value,
                        "reward": result.reward,
                        "advantage": row[index],
                        "adapter": completion.adapter,
                        "legs": [[segment.adapter, segment.tokens] for segment in completion.segments],
                        "prompt_tokens": len(prompt.token_ids),
                        "completion_tokens": len(completion.token_ids),
                        "finish_reason": completion.finish_reason,
                        # Why there is nothing to learn from it, where there is not.
                        **({} if result.scored else {"scored": False, "detail": result.detail}),
                    }
                    file.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def _sync(file: IO[Any]) -> None:
    """Write through to the disk: a checkpoint, which is synced, must not be ahead of what was recorded before it."""
    file.flush()
    os.fsync(file.fileno())


class _TensorBoard:
    def __init__(self, run: Path, done: int) -> None:
        # Here, and not above: whoever only reads a run's records has no need of torch.
        from torch.utils.tensorboard import SummaryWriter

        self._place = run / "tensorboard"
        self._writer = SummaryWriter(self._place, purge_step=done + 1)

    def log(self, line: dict[str, float]) -> None:
        with naming(self._place):
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(line["step"]))
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """Weights & Biases and trackio share one interface."""

    def __init__(self, module: str, project: str, run: Path, config: Config | SftConfig) -> None:
        self._module = importlib.import_module(module)
        self._module.init(project=project, name=run.name, config=config.model_dump(mode="json"))

    def log(self, line: dict[str, float]) -> None:
        self._module.log(line, step=int(line["step"]))

    def close(self) -> None:
        self._module.finish()


SERVICES = ("wandb", "trackio")


def check_services(log: LogConfig) -> None:
    """Raises `ConfigError` for a service whose package is not installed."""
    for module in SERVICES:
        if getattr(log, module) is not None and not _is_installed(module):
            raise ConfigError(f"log.{module} is set, and {module} is not installed: pip install {module}")


def _is_installed(module: str) -> bool:
    """A directory of that name is none: wandb leaves one wherever it has run."""
    if module in sys.modules:
        return sys.modules[module] is not None
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def open_sinks(run: Path, config: Config | SftConfig, done: int) -> list[Any]:
    sinks: list[Any] = []
    if config.log.tensorboard:
        sinks.append(_TensorBoard(run, done))
    check_services(config.log)
    for module in SERVICES:
        if (project := getattr(config.log, module)) is not None:
            sinks.append(_Tracker(module, project, run, config))
    return sinks
