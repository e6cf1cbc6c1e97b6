"""Adapter directory → what is known about it: manifest, PEFT's configuration, base model, and the run that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open

from datafiles.settings import read_settings
from datafiles.text import read_report
from rl_engine.config import Config
from rl_engine.config.file import RUN_CONFIG
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import read_metrics
from rollout.adapters import (
    MANIFEST,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    AdapterError,
    read_manifest,
    resolve_version,
    sha256_of,
)
from rollout.models import EMBEDDED, EMBEDDED_DIR


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The model under an adapter.

    Example: `BaseModel(name="Qwen/Qwen3-8B-Base", hub_id="Qwen/Qwen3-8B-Base", directory=None, revision=None)`
    """

    name: str
    """Display name: the hub id, `embedded`, or the last part of a directory's path."""
    hub_id: str | None
    """None if the model exists only on this machine."""
    directory: Path | None
    """The directory that the run loaded it from; None for a hub model."""
    revision: str | None

    @property
    def is_embedded(self) -> bool:
        return self.directory == EMBEDDED_DIR

    def source(self) -> str:
        """What to load: the directory, else the hub id. Raises `ValueError` if there is neither."""
        if self.directory is not None and self.directory.is_dir():
            return str(self.directory)
        if self.hub_id is not None:
            return self.hub_id
        raise ValueError(f"the base model {self.name} is not where the run loaded it from; give --base-model")


@dataclass(frozen=True, slots=True)
class Measure:
    """Example: `Measure("pass@16", 0.62, (0.51, 0.73))`"""

    name: str
    value: float
    interval: tuple[float, float]
    """95 % confidence interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSetting:
    """What an evaluation depends on besides the model. Scores are comparable if their settings are equal."""

    file: str | None
    """Output of `python -m evals`, whose prompts and grading may not be the run's own; None for the run's reports."""
    suite: str
    suite_version: int
    data_sha256: str | None
    """Digest of the problems; None in older reports."""
    problems: int
    samples: int
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float
    """Older reports lack these three and were made with None and 0."""
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One adapter's row in a report of `evals/`, restricted to the stable part of the format."""

    setting: EvalSetting
    adapter: str
    adapter_sha256: str | None
    """Digest of its manifest; None for the base model and in older reports."""
    measures: tuple[Measure, ...]
    """avg@k first, followed by pass@k and maj@k if there are several samples."""
    tokens_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What a run directory says about the run that made an adapter."""

    directory: Path
    values: dict[str, Any]
    """`config.yaml` as written."""
    config: Config | SftConfig | None
    """The same, validated; None for a configuration of another kind or version."""
    metrics: tuple[dict[str, float], ...]
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """A published adapter whose files match its manifest."""

    directory: Path
    manifest: dict[str, Any]
    sha256: str
    """Digest of the manifest, which covers every file."""
    peft: dict[str, Any]
    """Content of adapter_config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Name of each tensor → its shape."""
    base: BaseModel
    run: TrainingRun | None

    @property
    def version(self) -> str:
        return f"v{self.manifest['version']:06d}"

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return int(max([self.peft["r"], *self.peft["rank_pattern"].values()]))

    @property
    def step(self) -> int | None:
        """The step of the run after which it was published; None if the run's metrics do not say."""
        lines = self.run.metrics if self.run else ()
        version = self.manifest["version"]
        return next((int(line["step"]) for line in lines if line.get("adapter/version") == version), None)

    @property
    def is_best(self) -> bool:
        """Whether it is the run's best version, so that its score is the maximum of several."""
        return (self.directory.parent / "best").resolve() == self.directory

    def evaluations(self) -> list[tuple[Evaluation | None, Evaluation]]:
        """(the base model's evaluation, this adapter's) for every setting in which the adapter was evaluated.

        Version 0 has an update of zero and counts as the base model, unless training started from another adapter.
        """
        if self.run is None:
            return []
        name = self.manifest["name"]
        starts_as_base = self.run.values.get("lora", {}).get("start_from") is None
        base_names = {"base", f"{name}-v000000"} if starts_as_base else {"base"}
        base = {found.setting: found for found in self.run.evaluations if found.adapter in base_names}
        return [
            (base.get(found.setting), found)
            for found in self.run.evaluations
            if found.adapter_sha256 == self.sha256
            or (found.adapter_sha256 is None and found.adapter == f"{name}-{self.version}")
        ]


def read_trained(path: Path, base_model: str | None) -> TrainedAdapter:
    """Read everything about a published adapter: `runs/x/adapters/v000025`, or a pointer such as `latest`.

    `base_model` is the hub id of a base model that the run loaded from a directory.
    Raises `AdapterError` if a file differs from what was published, or the version is not an adapter.
    """
    directory = path.resolve()
    if not directory.is_dir():
        raise FileNotFoundError(f"--adapter: no such directory: {path}")
    manifest = read_manifest(directory)
    kind = manifest.get("kind", "lora")
    if kind != "lora":
        raise AdapterError(f"{path} holds a whole model (method: {kind}), and an adapter is needed here")
    for name in (PEFT_CONFIG, PEFT_WEIGHTS):
        if name not in manifest["files"]:
            raise AdapterError(f"{path}: its manifest does not list {name}")
    peft = json.loads((directory / PEFT_CONFIG).read_text(encoding="utf-8"))
    run = read_training_run(directory.parent.parent)
    return TrainedAdapter(
        directory=directory,
        manifest=manifest,
        sha256=sha256_of(directory / MANIFEST),
        peft=peft,
        shapes=_shapes(directory / PEFT_WEIGHTS),
        base=base_model_of(manifest, peft, run, base_model),
        run=run,
    )


def read_resolved(path: Path, base_model: str | None, say: Callable[[str], None]) -> TrainedAdapter:
    """`read_trained` for the version that the user means; if a run was given, `say` reports which version it is."""
    meant = resolve_version(path)
    if path.is_dir() and not (meant.directory / MANIFEST).is_file():
        raise AdapterError(
            f"--adapter: {path} is neither a published version (no {MANIFEST}) nor a run with adapters: give a run's "
            "directory, or one of its adapters/v000000, …"
        )
    if meant.why:
        say(meant.why)
    return read_trained(meant.directory, base_model)


def base_model_of(
    manifest: dict[str, Any], peft: dict[str, Any], run: TrainingRun | None, given: str | None
) -> BaseModel:
    """The base model, from PEFT's configuration, which names the directory it was loaded from or the hub id."""
    recorded, loaded = manifest["base_model"], peft["base_model_name_or_path"]
    if recorded == EMBEDDED:
        return BaseModel(name=given or EMBEDDED, hub_id=given, directory=EMBEDDED_DIR, revision=None)
    if loaded is None or Path(loaded).is_absolute():
        directory = Path(loaded) if loaded else None
        return BaseModel(name=given or Path(recorded).name, hub_id=given, directory=directory, revision=None)
    if given not in (None, loaded):
        raise ValueError(f"--base-model is {given!r}, and the adapter was trained on {loaded!r}: leave it out")
    revision = run.values.get("model", {}).get("revision") if run else peft["revision"]
    return BaseModel(name=loaded, hub_id=loaded, directory=None, revision=revision)


def merged_dtype_of(adapter: TrainedAdapter) -> str:
    """Precision of a merged model: that of the base model in training, or float32, which loses nothing, if unknown."""
    known = dtype_of(adapter)
    return "float32" if known == "auto" else known


def dtype_of(adapter: TrainedAdapter) -> str:
    """Precision of the base model during training; if unknown `auto`, which is the model's own."""
    values = adapter.run.values if adapter.run else {}
    return str(values.get("model", {}).get("dtype", "auto"))


def read_configuration(directory: Path) -> tuple[dict[str, Any], Config | SftConfig | None] | None:
    """`config.yaml` of a run as written, and validated if this version accepts it; None if there is no such file.

    Raises `ValueError` if the file is damaged.
    """
    if not (directory / RUN_CONFIG).is_file():
        return None
    values = read_settings(directory / RUN_CONFIG)
    config: Config | SftConfig | None = None
    for schema in (Config, SftConfig):
        with suppress(ValidationError):
            config = schema.model_validate(values)
    return values, config


def read_training_run(directory: Path) -> TrainingRun | None:
    """The run in that directory, if there is one."""
    if (found := read_configuration(directory)) is None:
        return None
    values, config = found
    return TrainingRun(
        directory=directory,
        values=values,
        config=config,
        metrics=tuple(read_metrics(directory)),
        evaluations=tuple(_evaluations(directory / "evals")),
    )


def _evaluations(evals: Path) -> Iterator[Evaluation]:
    """A run's own reports, one per file, and the rows of any output of `python -m evals` among them; other JSON files
    are skipped."""
    for path in sorted(evals.glob("*.json")):
        report = read_report(path)
        try:
            found = [_evaluation(row, path.name) for suite in report.get("suites", ()) for row in suite["rows"]]
            if "suite" in report:
                found.append(_evaluation(report, None))
        except (AttributeError, KeyError, TypeError):
            continue
        yield from found


def _evaluation(report: dict[str, Any], file: str | None) -> Evaluation:
    samples = report["samples"]
    measures = [Measure(f"avg@{samples}", report["avg"], tuple(report["interval"]))]
    for name in ("pass", "maj"):
        # With one sample these equal the average.
        if samples > 1 and (found := report.get(f"{name}_at", {}).get(str(samples))):
            measures.append(Measure(f"{name}@{samples}", found["value"], tuple(found["interval"])))
    setting: dict[str, Any] = {field.name: report.get(field.name) for field in fields(EvalSetting)}
    setting |= {"file": file, "min_p": report.get("min_p", 0.0)}
    return Evaluation(
        setting=EvalSetting(**setting),
        adapter=report["adapter"],
        adapter_sha256=report.get("adapter_sha256"),
        measures=tuple(measures),
        tokens_mean=report["tokens_mean"],
    )


def _shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(weights, framework="numpy") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
