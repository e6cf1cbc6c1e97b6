"""A run directory, finished or in progress → what the page shows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from datafiles.settings import read_settings
from datafiles.text import read_report
from evals.scoring.kept import KeptAnswer, kept_answers, kept_path
from evals.suites import suite_name
from rl_engine.config import Config
from rl_engine.config.fields import fields, leaves
from rl_engine.config.file import RUN_CONFIG
from rl_engine.config.sft import SftConfig
from rl_engine.report.completions import ShownCompletions, shown_completions
from rl_engine.report.spectra import with_spectra
from rl_engine.run.origin.starts import read_starts
from rl_engine.run.records import read_metrics, with_asking
from rollout.adapters import MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An adapter's score on a suite, and under which conditions: one of the run's own reports in evals/."""

    suite: str
    suite_version: int
    adapter: str
    problems: int
    samples: int
    avg: float
    interval: tuple[float, float]
    tokens_mean: float
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    """Reports of earlier versions lack the last three."""

    @property
    def decoding(self) -> str:
        """How the completions were sampled. Only scores that share it are comparable."""
        how = ["greedy"]
        if self.temperature:
            how = [f"temperature {self.temperature:g}"]
            how += [f"top_p {self.top_p:g}"] * (self.top_p != 1)
            how += [f"top_k {self.top_k}"] * (self.top_k is not None)
            how += [f"min_p {self.min_p:g}"] * (self.min_p > 0)
        return ", ".join([*how, f"≤ {self.max_tokens:,} tokens"])

    @property
    def condition(self) -> tuple[str, str]:
        """The suite and how it was sampled. Scores are comparable if both are the same."""
        return (
            f"{self.suite}, version {self.suite_version}",
            f"{self.problems:,} problems × {self.samples:,}, {self.decoding}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAdapter:
    """A version in adapters/, or one that has scores but is no longer on disk."""

    key: str
    """`AdapterRef.key`: `policy-v000005`."""
    manifest: Mapping[str, Any] | None
    """None if the version is no longer on disk."""
    step: int | None
    """The step that published it; None if no line of metrics says so."""
    is_best: bool
    is_latest: bool
    scores: Mapping[tuple[str, str], Score]
    """Condition → the score under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """Everything that is shown of a run."""

    name: str
    path: Path
    config_text: str
    settings: Mapping[str, Any]
    """The configuration with dotted keys."""
    lines: tuple[Mapping[str, float], ...]
    """Complete lines of metrics.jsonl, as far as their values are finite, with measurements of the adapters
    (`spectra.py`) and how suites were asked (`with_asking`)."""
    adapters: tuple[ShownAdapter, ...]
    """Sorted by key."""
    completions: ShownCompletions
    answers: Mapping[tuple[str, str], Mapping[str, KeptAnswer]]
    """(suite, adapter's key) → the answers that this evaluation kept, by problem id."""
    damaged: Sequence[str]
    """One line for each item in adapters/ and evals/ that is left out because it cannot be read."""
    starts: Sequence[Mapping[str, Any]] = ()
    """The processes that worked on the run (`rl_engine/run/origin/starts.py`)."""
    shows_answers: bool = True
    """Whether the page may contain answers to evaluation problems."""

    @property
    def step(self) -> int:
        """The last recorded step; 0 before the first."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def suites(self) -> list[str]:
        """The names of the suites that the run was told to evaluate, in the configuration's order."""
        return [suite_name(str(suite)) for suite in self.settings.get("eval.suites") or ()]

    @property
    def is_supervised(self) -> bool:
        """Whether this is a supervised run, which learns from examples and samples nothing."""
        return "sampling.n" not in self.settings

    @property
    def steps(self) -> int | None:
        """Steps that the configuration asks for; None for a supervised run measured in epochs."""
        steps = self.settings["train.steps"]
        return None if steps is None else int(steps)

    @property
    def has_left(self) -> bool:
        """Whether the last process that worked on it has recorded its end; a killed process has not."""
        return bool(self.starts) and "ended" in self.starts[-1]

    @property
    def is_done(self) -> bool:
        """Whether all steps are done; for a run measured in epochs, whether its process has ended."""
        return self.has_left if self.steps is None else self.step >= self.steps


def check_run(run: Path) -> None:
    """Raises `ValueError` if this is not a run directory."""
    if not (run / RUN_CONFIG).is_file():
        of_sweep = f"; its cells' runs are {run / 'cells/*/run'}" if (run / "cells").is_dir() else ""
        raise ValueError(f"{run} is not a run directory: there is no {run / 'config.yaml'}{of_sweep}")


def read_run(run: Path, *, problems: int, budget_bytes: int) -> ShownRun:
    """Read a run directory. Raises `ValueError` when it is not one."""
    check_run(run)
    text = (run / RUN_CONFIG).read_text(errors="replace", encoding="utf-8")
    settings = _settings(run / RUN_CONFIG)
    starts = read_starts(run)
    # A value that is not finite is a gap in its curve, and nothing to compute with.
    finite = [{key: value for key, value in line.items() if math.isfinite(value)} for line in read_metrics(run)]
    lines, broken = with_spectra(run, tuple(with_asking(finite, starts)))
    adapters = _adapters(run, lines)
    answers, damaged = _answers(run, adapters)
    return ShownRun(
        name=run.resolve().name,
        path=run,
        config_text=text,
        settings=settings,
        lines=lines,
        adapters=adapters,
        completions=shown_completions(
            run, problems=problems, budget_bytes=budget_bytes, recorded={int(line["step"]) for line in lines} - {0}
        ),
        answers=answers,
        damaged=[*broken, *damaged],
        starts=starts,
    )


def _settings(path: Path) -> dict[str, Any]:
    """A run's configuration with dotted keys; keys that are newer than the run have their defaults."""
    given = dict(leaves(read_settings(path)))
    known = dict(fields(SftConfig if "train.batch_size" in given else Config))
    required = [key for key, info in known.items() if info.is_required() and key != "output_dir"]
    for key in required:
        if key not in given:
            raise ValueError(f"{path} is not the configuration of a run: there is no {key}")
    optional = {key: info for key, info in known.items() if not info.is_required()}
    return {key: info.get_default(call_default_factory=True) for key, info in optional.items()} | given


def _adapters(run: Path, lines: tuple[Mapping[str, float], ...]) -> tuple[ShownAdapter, ...]:
    directories = {path.parent.name: path for path in (run / "adapters").glob(f"v[0-9]*/{MANIFEST}")}
    manifests = {}
    for name, path in directories.items():
        manifest = read_report(path)
        if not isinstance(manifest, dict) or "name" not in manifest:
            raise ValueError(f"{path} is damaged: it is not the manifest of a version")
        manifests[f"{manifest['name']}-{name}"] = manifest
    marks = {mark: (run / "adapters" / mark).resolve().name for mark in ("best", "latest")}
    # A step without signal publishes nothing, so a version was made by the first step that names it. A supervised run's
    # version numbers are its steps.
    steps: dict[str, int] = {}
    for line in lines:
        number = line.get("adapter/version", line.get("step"))
        if number is not None:
            steps.setdefault(f"v{int(number):06d}", int(line["step"]))
    scores = _scores(run)
    found = []
    for key in sorted({*manifests, *(score.adapter for score in scores)}):
        version = key.rpartition("-")[2]
        found.append(
            ShownAdapter(
                key=key,
                manifest=manifests.get(key),
                step=steps.get(version),
                is_best=version == marks["best"],
                is_latest=version == marks["latest"],
                scores={score.condition: score for score in scores if score.adapter == key},
            )
        )
    return tuple(found)


def _answers(
    run: Path, adapters: Sequence[ShownAdapter]
) -> tuple[dict[tuple[str, str], Mapping[str, KeptAnswer]], list[str]]:
    """`ShownRun.answers` and `ShownRun.damaged`. Damaged files are reported, and the rest of the run is shown."""
    answers: dict[tuple[str, str], Mapping[str, KeptAnswer]] = {}
    damaged = []
    for suite, key in sorted({(score.suite, one.key) for one in adapters for score in one.scores.values()}):
        try:
            kept = kept_answers(kept_path(run / "evals", suite, key))
        except ValueError as error:
            damaged.append(str(error))
        else:
            if kept:
                answers[suite, key] = kept
    return answers, damaged


def _scores(run: Path) -> list[Score]:
    """Every report in evals/; other JSON files there are skipped."""
    optional = {field.name for field in fields_of(Score) if field.default is not MISSING}
    names = Score.__annotations__.keys() - optional
    scores = []
    for path in sorted((run / "evals").glob("*.json")):
        report = read_report(path)
        if isinstance(report, dict) and all(name in report for name in names):
            low, high = report["interval"]
            known = {name: report[name] for name in names | (optional & report.keys())}
            scores.append(Score(**known | {"interval": (low, high)}))
    return scores
