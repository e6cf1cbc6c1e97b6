"""A run directory, finished or in progress → its metrics, completions, adapters and scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafiles.text import read_report
from rl_engine.config import Config
from rl_engine.config.file import RUN_CONFIG
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import read_metrics, read_rollouts, rollout_files
from rl_engine.run.trained_adapter import read_configuration
from rollout.adapters import AdapterStore
from rollout.models import from_home


@dataclass(frozen=True)
class Run:
    """A run directory. Values are read from the files on each access, so a run in progress shows its current state."""

    path: Path
    settings: dict[str, Any] = field(repr=False)
    """`config.yaml`: the resolved configuration, including values that were chosen automatically."""
    config: Config | SftConfig | None = field(repr=False)
    """The same, validated; None if another version of the project wrote it and this one does not accept it."""

    def __fspath__(self) -> str:
        """The directory: a run can be given where a path can."""
        return str(self.path)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One row per step, starting with step 0, the evaluation before training. Names are those of docs/metrics.md;
        units are seconds, tokens, nats and fractions."""
        return read_metrics(self.path)

    def to_pandas(self) -> Any:
        """The metrics as a DataFrame indexed by step. Raises `ImportError` if pandas is not installed."""
        import pandas  # type: ignore[import-untyped]

        frame = pandas.DataFrame(self.metrics)
        return frame.set_index(frame["step"].astype(int)).drop(columns="step") if len(frame) else frame

    @property
    def step(self) -> int:
        """The last recorded step; 0 before the first."""
        return int(max((row["step"] for row in self.metrics), default=0))

    def completions(self, step: int | None = None) -> Iterator[dict[str, Any]]:
        """Every completion of the run, or of one step, read one step's file at a time: problem, prompt, completion,
        verdict, reward, advantage, tokens. Empty if the run keeps none, like a supervised run.

        Raises `ValueError` for a step without completions and for a file that cannot be read. Unreadable files of a
        step that is not recorded yet are skipped, because they are still being written.
        """
        files, done = rollout_files(self.path), self.step
        if step is not None and step not in files:
            raise ValueError(f"{self.path} has no completions of step {step!r}: its last step is {done}")
        for one in files if step is None else [step]:
            try:
                rows = read_rollouts(files[one])
            except ValueError:
                if one <= done:
                    raise
            else:
                yield from rows

    @property
    def adapters(self) -> dict[int, Path]:
        """Version → its directory: an adapter in PEFT's format, or with `method: full` a whole model."""
        store = AdapterStore(self.path / "adapters")
        return {version: store.path_of(version) for version in store.versions()}

    @property
    def latest(self) -> Path | None:
        """The newest version; None before the first."""
        return self._pointed("latest")

    @property
    def best(self) -> Path | None:
        """The version with the highest score on `eval.best`; None if none was scored."""
        return self._pointed("best")

    @property
    def evals(self) -> list[dict[str, Any]]:
        """The run's own reports in `evals/`, each for one suite and version, with the score `avg` and its 95 %
        `interval`. Reports that `python -m evals` wrote there are not included."""
        found = map(read_report, sorted((self.path / "evals").glob("*.json")))
        return [report for report in found if isinstance(report, dict) and "suite" in report]

    def _pointed(self, pointer: str) -> Path | None:
        link = self.path / "adapters" / pointer
        return link.resolve() if link.is_dir() else None


def read_run(path: str | Path) -> Run:
    """Read the run in a directory: a run of `rl_engine.train` or `rl_engine.sft`, or a cell of a sweep, finished or in
    progress.

    Raises `FileNotFoundError` if there is none.
    """
    directory = from_home(path).absolute()
    found = read_configuration(directory)
    if found is None:
        raise FileNotFoundError(f"{path} is not a run directory: there is no {Path(path) / RUN_CONFIG}")
    settings, config = found
    return Run(path=directory, settings=settings, config=config)
