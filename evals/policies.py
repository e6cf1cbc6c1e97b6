"""Adapter directories → the policies to measure: the base model, and adapters that the engine can load.

A published version is verified by its manifest. A directory that PEFT wrote elsewhere has no manifest: it is used as
it is, after a check that vLLM can serve it on this model.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.adapters import (
    MANIFEST,
    PEFT_CONFIG,
    AdapterError,
    ResolvedVersion,
    adapters_inside,
    identity_of,
    read_manifest,
    resolve_version,
)
from rollout.engine import smallest_allowed_rank
from rollout.models import from_home, is_wrapper, layer_sizes, locate_model, model_title
from rollout.peft_format import REMEDY, adapted_layers, read_peft, refuse_misfit, unadapted
from rollout.servable import check_adaptable
from rollout.types import BASE, AdapterRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The base model or one adapter on it."""

    label: str
    """Its name in reports: the version's key, the name given, or the directory's name."""
    ref: AdapterRef | None = None
    """None for the base model."""
    why: str = ""
    """If a run was given: which run it is from, and why this version was chosen."""
    remarks: tuple[str, ...] = ()
    """Warnings to consider before trusting its numbers."""


BASE_MODEL = Policy(label=BASE)


def find_policies(arguments: Sequence[str], model: str, model_config: Any) -> list[Policy]:
    """The policies of `--adapter [NAME=]DIR`, checked against the model and its configuration.

    Raises `AdapterError` or `ValueError` for an adapter that cannot be measured.
    """
    sizes = layer_sizes(model_config, f"--model {model}") if arguments else {}
    policies = [_policy(argument, model, sizes, all_named=not is_wrapper(model_config)) for argument in arguments]
    for ref in (policy.ref for policy in policies if policy.ref is not None):
        refuse_unserved(ref.path, model_config)
    labels = Counter(policy.label for policy in policies)
    for label, count in labels.items():
        if label == BASE:
            raise AdapterError(f"--adapter: {BASE!r} is what the base model is called; give another name: NAME=DIR")
        if count > 1:
            raise AdapterError(f"{count} adapters are called {label!r}; give names of your own: --adapter NAME=DIR")
    return policies


def refuse_unserved(adapter: Path, model_config: Any) -> None:
    """Raise `ValueError` for an adapter that vLLM would refuse, or of which it would silently ignore a part."""
    check_adaptable(model_config, adapted_layers(adapter), f"--adapter {adapter}", REMEDY)


def named_version(argument: str) -> tuple[str, ResolvedVersion]:
    """`[NAME=]DIR` → the name, if any, and the version. Both may contain equals signs: the directory is the longest
    ending that exists.

    Raises `AdapterError` if there is no directory in it: an empty path would be the current one.
    """
    parts = argument.split("=")
    splits = [("=".join(parts[:place]), "=".join(parts[place:])) for place in range(len(parts))]
    # Not Path.exists, which raises an error for a name that is too long to be one.
    there = (one for one in splits if one[1] and os.path.exists(from_home(one[1])))  # noqa: PTH110
    name, directory = next(there, splits[:2][-1])
    if not directory:  # `--adapter mine=$RUN`, with a variable that is unset
        raise AdapterError(f"--adapter {argument!r} names no directory")
    return name, resolve_version(from_home(directory))


def _policy(argument: str, model: str, sizes: Mapping[str, tuple[int, int] | None], *, all_named: bool) -> Policy:
    name, meant = check_adapter(argument)
    directory = meant.directory.resolve()
    settings = read_peft(directory, "--adapter")
    rank = _rank_of(settings, directory)
    refuse_misfit(directory, model, sizes, all_named=all_named)
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
    if all_named and (lacking := unadapted(directory, settings, sizes)):
        message = f"no weights for {len(lacking)} of the layers that {PEFT_CONFIG} names ({lacking[0]} for one)"
        remarks.append(f"{message}: they stay as in the base model")
    trained_on = manifest.get("base_model") or settings.get("base_model_name_or_path")
    if trained_on and not same_model(trained_on, model):
        remarks.append(f"trained on {trained_on!r}, measured on {model!r}: make sure that they are the same model")
    return Policy(label=ref.key if published and not name else ref.name, ref=ref, why=meant.why, remarks=tuple(remarks))


def check_adapter(argument: str) -> tuple[str, ResolvedVersion]:
    """`named_version`, but raises `AdapterError` unless the version is a plain LoRA adapter."""
    name, meant = named_version(argument)
    if not (meant.directory / PEFT_CONFIG).is_file():
        raise AdapterError(f"--adapter {argument}: {_what_is_there(meant.directory)}")
    if "target_modules" not in read_peft(meant.directory, "--adapter"):  # vLLM says so once everything is loaded
        raise AdapterError(
            f"--adapter: {meant.directory}: {PEFT_CONFIG} has no target_modules, and vLLM asks for it: list there the "
            "layers that are adapted, such as q_proj"
        )
    return name, meant


def _what_is_there(directory: Path) -> str:
    if (directory / "config.json").is_file():
        return f"a whole model, not an adapter; give it as --model {directory}"
    if not directory.is_dir():
        return "no such directory"
    return f"not an adapter: it has no {PEFT_CONFIG}{adapters_inside(directory)}"


def _rank_of(settings: dict[str, Any], directory: Path) -> int:
    """The largest rank of any layer. Raises `AdapterError` for a rank that vLLM cannot serve."""
    rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    try:
        smallest_allowed_rank(rank)
    except ValueError as error:
        raise AdapterError(f"{directory}: {error}") from error
    return rank


def same_model(one: str, other: str) -> bool:
    """Whether two names can be of the same model: they are equal, or paths or hub ids with the same last part."""
    with contextlib.suppress(FileNotFoundError):  # a directory on another machine
        one, other = locate_model(one), locate_model(other)
    return one == other or model_title(one) == model_title(other)
