"""Adapter directories → the policies to measure: the base model, and adapters that the engine can be told to load.

A published version is verified by its manifest. A directory that PEFT wrote elsewhere has none: it is taken as it is,
after a look at whether vLLM can serve it on this model.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rollout.adapters import (
    MANIFEST,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    AdapterError,
    Meant,
    identity_of,
    meant_version,
    read_manifest,
)
from rollout.engine import smallest_allowed_rank
from rollout.models import locate_model
from rollout.peft_format import read_peft
from rollout.types import BASE, AdapterRef

# Layers that read the hidden state: their A has as many columns as the model is wide.
READS_HIDDEN = re.compile(r"\.layers\.(\d+)\..*\.(?:[qkv]_proj|gate_proj|up_proj)\.lora_A\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The base model or one adapter on it."""

    label: str
    """What reports call it: the version's key, the name given, or the directory's."""
    ref: AdapterRef | None = None
    """None for the base model."""
    why: str = ""
    """Which run it was taken of, and why that version, where a run was given."""
    remarks: tuple[str, ...] = ()
    """What a person should know before trusting it."""


BASE_MODEL = Policy(label=BASE)


def find_policies(arguments: Sequence[str], model: str, model_config: Any) -> list[Policy]:
    """The policies of `--adapter [NAME=]DIR`, checked against a model and its text configuration.

    Raises `AdapterError` for what cannot be measured.
    """
    policies = [_policy(argument, model, model_config) for argument in arguments]
    labels = Counter(policy.label for policy in policies)
    for label, count in labels.items():
        if count > 1 or label == BASE:
            raise AdapterError(f"{count} adapters are called {label!r}; give names of your own: --adapter NAME=DIR")
    return policies


def named_version(argument: str) -> tuple[str, Meant]:
    """`[NAME=]DIR` → the name, or nothing, and the version; the directory's own name may hold the sign."""
    name, _, place = ("", "", argument) if Path(argument).exists() or "=" not in argument else argument.partition("=")
    return name, meant_version(Path(place).expanduser())


def _policy(argument: str, model: str, model_config: Any) -> Policy:
    name, meant = check_adapter(argument)
    directory = meant.directory.resolve()
    settings = read_peft(directory, "--adapter")
    rank = _rank_of(settings, directory)
    _check_fits(directory, model_config, model)
    published = (directory / MANIFEST).is_file()
    manifest = read_manifest(directory) if published else {}
    ref = AdapterRef(
        name=name or manifest.get("name", directory.name),
        version=manifest.get("version", 0),
        path=directory,
        sha256=identity_of(directory),
        rank=rank,
    )
    remarks = [] if published else ["no manifest: taken as it is, not verified"]
    trained_on = manifest.get("base_model") or settings.get("base_model_name_or_path")
    if trained_on and not same_model(trained_on, model):
        remarks.append(f"trained on {trained_on!r}, measured on {model!r}: make sure that they are one model")
    return Policy(label=ref.key if published and not name else ref.name, ref=ref, why=meant.why, remarks=tuple(remarks))


def check_adapter(argument: str) -> tuple[str, Meant]:
    """`named_version`, where that is a plain LoRA adapter's. Raises `AdapterError`."""
    name, meant = named_version(argument)
    if not (meant.directory / PEFT_CONFIG).is_file():
        raise AdapterError(f"--adapter {argument}: {_what_is_there(meant.directory)}")
    read_peft(meant.directory, "--adapter")
    return name, meant


def _what_is_there(directory: Path) -> str:
    if (directory / "config.json").is_file():
        return f"a whole model, not an adapter; give it as --model {directory}"
    if not directory.is_dir():
        return "no such directory"
    return f"not an adapter: it has no {PEFT_CONFIG}"


def _rank_of(settings: dict[str, Any], directory: Path) -> int:
    """The largest rank of its layers. Raises `AdapterError` for what vLLM cannot serve."""
    rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    try:
        smallest_allowed_rank(rank)
    except ValueError as error:
        raise AdapterError(f"{directory}: {error}") from error
    return rank


def _check_fits(directory: Path, model_config: Any, model: str) -> None:
    """Raises `AdapterError` for another model's adapter: vLLM would copy what is too small into its larger buffers."""
    layers, hidden = model_config.num_hidden_layers, model_config.hidden_size
    with safe_open(directory / PEFT_WEIGHTS, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            found = READS_HIDDEN.search(name)
            if found is None:
                continue
            width = weights.get_slice(name).get_shape()[1]
            if width != hidden or int(found[1]) >= layers:
                raise AdapterError(
                    f"{directory} does not fit {model}: {name} reads {width} values in layer {found[1]}, and the model "
                    f"is {hidden} wide with {layers} layers"
                )


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model as far as names tell: equal, or the same last part of a path or hub id."""
    with contextlib.suppress(FileNotFoundError):  # a directory of another machine
        one, other = locate_model(one), locate_model(other)
    return one == other or Path(one).name == Path(other).name
