"""Adapter directory → the prompt, stop strings and grading of the run that made it, the defaults of its evaluation.

An adapter only knows the prompt that it was trained with: with another prompt it may score nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from datafiles.settings import read_settings
from datafiles.tasks import Task
from datafiles.text import read_text
from evals.partial_results import differences
from evals.policies import Policy
from evals.suites import ANSWER_FORMS, ASKED_OF_EMBEDDED, GENERATED_SUITE, NO_COLUMNS, generated_by
from rewards import RewardConfig
from rewards.config import AnswerForm
from rollout.adapters import CHAT_TEMPLATE, MANIFEST
from rollout.config import ColumnsConfig, DataConfig, PromptConfig
from rollout.frames import CHAT_TEMPLATES
from rollout.models import from_home
from rollout.prompts.generated import REASONING_GYM
from rollout.prompts.problems import ARITHMETIC, tasks_of

CONFIG = "config.yaml"
RECORD = "run"
"""Subdirectory of a model's directory that records which run made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProtocol:
    """The part of a run's configuration that an evaluation takes over."""

    origin: Path
    """The path of the run's configuration."""
    prompt: PromptConfig
    stop: tuple[str, ...] = ()
    """Strings that end a completion, in addition to the template's own."""
    answer_forms: tuple[AnswerForm, ...] = ANSWER_FORMS
    chat_template: str | None = None
    """The Jinja text that replaced the model's own chat template; only in supervised runs."""
    generated: tuple[DataConfig, ...] = ()
    """The generated sources that the run trained on or asked, from which `held_out` takes its problems."""
    columns: ColumnsConfig = NO_COLUMNS
    """The run's names for the columns of its data, which its suites followed where they have them."""
    max_tokens: int | None = None
    """The completion limit, in tokens, of the run's evaluations or else of its training."""

    @property
    def tasks(self) -> list[Task]:
        """The generated tasks, which their own scorers grade."""
        return list({task.key: task for source in self.generated for task in tasks_of(source)}.values())

    def describe(self) -> str:
        instruction = f"instruction {self.prompt.instruction!r}" if self.prompt.instruction else "no instruction"
        parts = [
            f"template {self.prompt.template}",
            *([f"system message {self.prompt.system!r}"] if self.prompt.system else []),
            instruction,
            *([f"stop {', '.join(map(repr, self.stop))}"] if self.stop else []),
            f"answers as {', '.join(self.answer_forms)}",
        ]
        return f"asked as in training ({self.origin}): {'; '.join(parts)}"

    def asked(self, template: str, frame: str | None, instruction: str | None) -> PromptConfig:
        """The run's prompt, with the overrides from the command line: a template other than `auto`, a frame, an
        instruction (empty for none)."""
        values = self.prompt.model_dump()
        if frame is not None:
            values |= {"template": "frame", "frame": frame}
        if template != "auto":
            values["template"] = template
        if values["template"] != "frame":
            values["frame"] = None
        if values["template"] != "chat":
            values["system"] = None
        if instruction is not None:
            values["instruction"] = instruction or None
        return PromptConfig.model_validate(values)


def training_protocol(directory: Path) -> TrainingProtocol | None:
    """The settings of the run that published this version, or None if there is no record of the run.

    Raises `ValueError` if the run's configuration cannot be read.
    """
    path = run_config_of(directory)
    return None if path is None else _read(path, directory)


def run_config_of(directory: Path) -> Path | None:
    """The configuration of the run that made a version, or a model merged from one; None if there is none.

    A version is in `RUN/adapters`. A pushed version has its run's configuration in `run`, and so does a merged model,
    together with the manifest of the adapter that was merged.
    """
    published, record = (directory / MANIFEST).is_file(), directory / RECORD
    places = [record / CONFIG] if published or (record / MANIFEST).is_file() else []
    if published and directory.parent.name == "adapters":
        places.append(directory.parent.parent / CONFIG)
    return next((place for place in places if place.is_file()), None)


def chat_template_of(directory: Path) -> str | None:
    """The chat template that replaced the model's own in the run that made this version, or None.

    Raises `ValueError` if the template's file is lost.
    """
    path = run_config_of(directory)
    data = None if path is None else read_settings(path).get("data")
    if path is None or not isinstance(data, dict):  # a configuration from another version of rl_engine
        return None
    return _chat_template(data.get("chat_template"), path, directory)


def _read(path: Path, directory: Path) -> TrainingProtocol:
    values = read_settings(path)
    try:
        data, rewards = values["data"], values.get("rewards")
        return TrainingProtocol(
            origin=path,
            prompt=PromptConfig.model_validate(values["prompt"]),
            stop=tuple(values.get("sampling", {}).get("stop", ())),
            answer_forms=RewardConfig(answer_forms=rewards["answer_forms"]).answer_forms if rewards else ANSWER_FORMS,
            chat_template=_chat_template(data.get("chat_template"), path, directory),
            generated=_generated(data, values.get("eval", {}).get("suites") or (), supervised=rewards is None),
            columns=_columns(data),
            max_tokens=values.get("eval", {}).get("max_tokens") or values.get("sampling", {}).get("max_tokens"),
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        raise ValueError(f"{path} is not the configuration of a run of this version: {reason}") from error


def _columns(data: dict[str, Any]) -> ColumnsConfig:
    given = data.get("columns") or {}
    return ColumnsConfig.model_validate({role: given.get(role) for role in ColumnsConfig.model_fields})


def _generated(data: dict[str, Any], suites: Sequence[str], *, supervised: bool) -> tuple[DataConfig, ...]:
    """The generated sources in a run's data, or without any those of its own suite `held_out`. Supervised runs have no
    settings for sums that an evaluation could use, so only their tasks are taken over."""
    keys = ("source", "mix", "task", "task_settings", *(() if supervised else ("arithmetic",)))
    sources = {part["source"] for part in (data, *(data.get("mix") or ()))}
    if REASONING_GYM not in sources and (supervised or not (ARITHMETIC in sources or GENERATED_SUITE in suites)):
        return ()
    return generated_by(DataConfig.model_validate({key: data[key] for key in keys if key in data}))


def _chat_template(name: Any, config: Path, directory: Path) -> str | None:
    """The text of a run's chat template. The copy in the version's directory is what it was trained with; older
    versions have only the name of the file."""
    if name is None:
        return None
    if name in CHAT_TEMPLATES and not (directory / CHAT_TEMPLATE).is_file():
        return CHAT_TEMPLATES[name]
    for place in (directory / CHAT_TEMPLATE, Path(name), config.parent / Path(name).name):
        if place.is_file():
            return read_text(place)
    raise ValueError(
        f"{config}: data.chat_template {name} is not here, and the adapter was trained with it: copy it to "
        f"{config.parent / Path(name).name}"
    )


def agreed(model: str, policies: Sequence[Policy], suites: Sequence[str]) -> TrainingProtocol | None:
    """The settings with which all policies were trained: the adapters', or else the model's if a run of ours made it.

    Raises `ValueError` if two adapters were trained with different settings, because all get the same prompts. Which
    problems were generated for their training counts only if `held_out`, which continues them, is among the suites.
    """
    found = {policy.label: training_protocol(policy.ref.path) for policy in policies if policy.ref is not None}
    known = {label: one for label, one in found.items() if one is not None}
    if not known:
        return training_protocol(from_home(model).resolve())
    (label, first), *others = known.items()
    for other, one in others:
        if changed := differences(_prompting(first), _prompting(one)):
            raise ValueError(
                f"{label} and {other} were trained with different prompts, and one evaluation prompts all alike: "
                f"measure them one by one ({'; '.join(changed)})"
            )
        if GENERATED_SUITE in suites and (changed := differences(_held_out(first), _held_out(one), GENERATED_SUITE)):
            raise ValueError(
                f"--suite {GENERATED_SUITE}: {label} and {other} were trained on different generated problems, and one "
                f"evaluation asks all the same: measure them one by one, or on other suites ({'; '.join(changed)})"
            )
    return first


def _held_out(one: TrainingProtocol) -> list[dict[str, Any]]:
    sources = one.generated or ASKED_OF_EMBEDDED
    return [source.model_dump(mode="json", exclude_defaults=True) for source in sources]


def _prompting(one: TrainingProtocol) -> dict[str, Any]:
    return {
        "prompt": one.prompt.model_dump(mode="json"),
        "stop": list(one.stop),
        "answer_forms": list(one.answer_forms),
        "chat_template": one.chat_template,
    }


def model_overridden(model: str, trained: TrainingProtocol) -> list[str]:
    """Warnings if the base model was itself trained with other settings than the adapter, whose settings are used."""
    own = training_protocol(from_home(model).resolve())
    changed = differences(_prompting(own), _prompting(trained)) if own is not None else []
    return [f"--model is prompted like the adapter, not as in its own training: {line}" for line in changed]


def overridden(trained: TrainingProtocol, asked: PromptConfig) -> list[str]:
    """Warnings about prompt settings that differ from those in training."""
    changed = differences(trained.prompt.model_dump(mode="json"), asked.model_dump(mode="json"), "prompt")
    return [f"prompted differently from training: {line}" for line in changed]
