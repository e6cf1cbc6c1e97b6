"""A run directory, finished or still at work → its metrics, completions, adapters and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_engine.config import Config
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import read_metrics, read_rollouts
from rl_engine.run.trained import RUN_CONFIG, read_configuration
from rollout.adapters import AdapterStore


@dataclass(frozen=True)
class Run:
    """A run's directory. Everything is read when it is asked for: of a run at work, what there is by then."""

    path: Path
    settings: dict[str, Any]
    """`config.yaml`: the configuration with every value that was chosen by itself."""
    config: Config | SftConfig | None
    """The same, checked; None where another version of the project wrote it and this one does not take it."""

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One row a step, from step 0, the evaluation before training: the names of docs/metrics.md; seconds, tokens,
        nats, fractions."""
        return read_metrics(self.path)

    def to_pandas(self) -> Any:
        """The metrics as a DataFrame, its index the step. Raises `ImportError` where pandas is not installed."""
        import pandas  # type: ignore[import-untyped]

        frame = pandas.DataFrame(self.metrics)
        return frame.set_index(frame["step"].astype(int)).drop(columns="step") if len(frame) else frame

    @property
    def step(self) -> int:
        """The last step on record; 0 before the first."""
        return int(max((row["step"] for row in self.metrics), default=0))

    def completions(self, step: int | None = None) -> Iterator[dict[str, Any]]:
        """Every completion of the run, or of one step, a step's file at a time: problem, prompt, completion, verdict,
        reward, advantage, tokens; docs/metrics.md has the names. None where the run keeps none, as a supervised one.

        Raises `ValueError` for a step without completions.
        """
        files = sorted((self.path / "rollouts").glob("step*.jsonl*"))
        if step is not None:
            files = [path for path in files if path.name.startswith(f"step{step:06d}.")]
            if not files:
                raise ValueError(f"{self.path} has no completions of step {step}: its last step is {self.step}")
        for path in files:
            yield from read_rollouts(path)

    @property
    def adapters(self) -> dict[int, Path]:
        """Version → its directory, in PEFT's format; of a run with `method: full`, that of a whole model."""
        store = AdapterStore(self.path / "adapters")
        return {version: store.path_of(version) for version in store.versions()}

    @property
    def latest(self) -> Path | None:
        """The newest version; None before the first."""
        return self._pointed("latest")

    @property
    def best(self) -> Path | None:
        """The version with the highest score on `eval.best`; None where none is scored."""
        return self._pointed("best")

    @property
    def evals(self) -> list[dict[str, Any]]:
        """The reports in `evals/`: a suite and a version each, with the score `avg` and its 95 % `interval`."""
        return [json.loads(path.read_text()) for path in sorted((self.path / "evals").glob("*.json"))]

    def _pointed(self, pointer: str) -> Path | None:
        link = self.path / "adapters" / pointer
        return link.resolve() if link.exists() else None


def read_run(path: str | Path) -> Run:
    """The run in a directory: of `rl_engine.train`, `rl_engine.sft` or a cell of a sweep, also one that is at work.

    Raises `FileNotFoundError` where there is none.
    """
    directory = Path(path).expanduser().absolute()
    found = read_configuration(directory)
    if found is None:
        raise FileNotFoundError(f"{path} is not a run directory: there is no {Path(path) / RUN_CONFIG}")
    settings, config = found
    return Run(path=directory, settings=settings, config=config)
