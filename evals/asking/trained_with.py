"""Adapter directory → how the run that made it asked, stopped and graded: it is measured so unless told otherwise.

An adapter knows the prompt it was trained with and no other: asked in other words it may score nothing.
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
from evals.suites import ANSWER_FORMS, generated_by
from rewards import RewardConfig
from rewards.config import AnswerForm
from rollout.adapters import CHAT_TEMPLATE, MANIFEST
from rollout.config import DataConfig, PromptConfig
from rollout.frames import CHAT_TEMPLATES
from rollout.models import from_home
from rollout.prompts.generated import REASONING_GYM
from rollout.prompts.problems import ARITHMETIC, tasks_of

CONFIG = "config.yaml"
RECORD = "run"
"""Directory in a model's own that says which run made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWith:
    """What of a run's configuration an evaluation takes over."""

    origin: Path
    """The configuration."""
    prompt: PromptConfig
    stop: tuple[str, ...] = ()
    """Strings that end a completion, besides the template's own."""
    answer_forms: tuple[AnswerForm, ...] = ANSWER_FORMS
    chat_template: str | None = None
    """Jinja text that took the place of the model's own; of supervised runs."""
    generated: tuple[DataConfig, ...] = ()
    """The generated sources among those that the run trained on: what `held_out` asks."""
    max_tokens: int | None = None
    """Longest completion that the run measured with, or trained with."""

    @property
    def tasks(self) -> list[Task]:
        """Those whose own scorers grade."""
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
        """Its prompt with what was given on the command line in its place: a template other than `auto`, a frame, an
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


def trained_with(directory: Path) -> TrainedWith | None:
    """What the run says that published this version, or None where no run is beside it.

    Raises `ValueError` for a configuration that cannot be read.
    """
    path = run_config_of(directory)
    return None if path is None else _read(path, directory)


def run_config_of(directory: Path) -> Path | None:
    """The configuration of the run that made a version, or a model of it.

    A version lies in `RUN/adapters`; a pushed one has its run's configuration in `run`, and so has a merged model, with
    the manifest of the adapter that is in it.
    """
    published, record = (directory / MANIFEST).is_file(), directory / RECORD
    places = [record / CONFIG] if published or (record / MANIFEST).is_file() else []
    if published and directory.parent.name == "adapters":
        places.append(directory.parent.parent / CONFIG)
    return next((place for place in places if place.is_file()), None)


def chat_template_of(directory: Path) -> str | None:
    """The template that took the place of the model's own in the run that made this version, or None where none did.

    Raises `ValueError` where it is lost.
    """
    path = run_config_of(directory)
    data = None if path is None else read_settings(path).get("data")
    if path is None or not isinstance(data, dict):  # a configuration of another version
        return None
    return _chat_template(data.get("chat_template"), path, directory)


def _read(path: Path, directory: Path) -> TrainedWith:
    values = read_settings(path)
    try:
        data, rewards = values["data"], values.get("rewards")
        return TrainedWith(
            origin=path,
            prompt=PromptConfig.model_validate(values["prompt"]),
            stop=tuple(values.get("sampling", {}).get("stop", ())),
            answer_forms=RewardConfig(answer_forms=rewards["answer_forms"]).answer_forms if rewards else ANSWER_FORMS,
            chat_template=_chat_template(data.get("chat_template"), path, directory),
            generated=_generated(data, supervised=rewards is None),
            max_tokens=values.get("eval", {}).get("max_tokens") or values.get("sampling", {}).get("max_tokens"),
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        raise ValueError(f"{path} is not the configuration of a run of this version: {said}") from error


def _generated(data: dict[str, Any], *, supervised: bool) -> tuple[DataConfig, ...]:
    """Supervised runs have no settings of sums that an evaluation could ask: their tasks alone are taken over."""
    keys = ("source", "mix", "task", "task_settings", *(() if supervised else ("arithmetic",)))
    parts = [data, *(data.get("mix") or ())]
    if not any(part["source"] == REASONING_GYM or (part["source"] == ARITHMETIC and not supervised) for part in parts):
        return ()
    return generated_by(DataConfig.model_validate({key: data[key] for key in keys if key in data}))


def _chat_template(name: Any, config: Path, directory: Path) -> str | None:
    """What lies beside the version is what it was trained with; versions from before have the file's name alone."""
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


def agreed(model: str, policies: Sequence[Policy]) -> TrainedWith | None:
    """How all that is measured was trained: the adapters, else the model itself where a run of ours made it.

    Raises `ValueError` when two adapters were trained with different settings, for all are asked the same.
    """
    found = {policy.label: trained_with(policy.ref.path) for policy in policies if policy.ref is not None}
    known = {label: one for label, one in found.items() if one is not None}
    if not known:
        return trained_with(from_home(model).resolve())
    (label, first), *others = known.items()
    for other, one in others:
        changed = differences(_deciding(first), _deciding(one))
        if changed:
            raise ValueError(
                f"{label} and {other} were trained with different prompts, and one evaluation prompts all alike: "
                f"measure them one by one ({'; '.join(changed)})"
            )
    return first


def _deciding(one: TrainedWith) -> dict[str, Any]:
    return {
        "prompt": one.prompt.model_dump(mode="json"),
        "stop": list(one.stop),
        "answer_forms": list(one.answer_forms),
        "chat_template": one.chat_template,
        "generated": [source.model_dump(mode="json") for source in one.generated],
    }


def model_overridden(model: str, trained: TrainedWith) -> list[str]:
    """What a person is warned of: a model that an adapter went on from is asked as the adapter was trained."""
    own = trained_with(from_home(model).resolve())
    changed = differences(_deciding(own), _deciding(trained)) if own is not None else []
    return [f"--model is prompted like the adapter, not as in its own training: {line}" for line in changed]


def overridden(trained: TrainedWith, asked: PromptConfig) -> list[str]:
    """What a person is warned of: settings given that are not those of the training."""
    changed = differences(trained.prompt.model_dump(mode="json"), asked.model_dump(mode="json"), "prompt")
    return [f"prompted differently from training: {line}" for line in changed]
