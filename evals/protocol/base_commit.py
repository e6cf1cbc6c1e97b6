"""Adapters of a model of the hub → the commit that they were trained on, at which an evaluation reads their base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datafiles.settings import read_settings
from datafiles.text import read_report
from evals.policies import named_version
from evals.protocol.training_protocol import run_config_of
from rollout.adapters import PEFT_CONFIG
from rollout.hub import commit_of
from rollout.models import locate_model


def revision_to_read(model: str, revision: str | None, adapters: Sequence[str]) -> str | None:
    """The revision at which to read the base model `--model`: the given one, or else that on which the adapters, each
    `[NAME=]DIR`, were trained; None if they do not say, or the model is a directory.

    Raises `ValueError` if they were trained on different ones.
    """
    if revision is not None:
        return revision
    found = trained_at(model, adapters)
    if len({*found.values()}) > 1:
        told = ", ".join(f"{adapter} on {commit}" for adapter, commit in found.items())
        raise ValueError(
            f"--adapter: trained on different revisions of {model} ({told}), and one evaluation has one base: measure "
            "them one by one, or give --revision"
        )
    return next(iter(found.values()), None)


def commit_to_read(model: str, revision: str | None, adapters: Sequence[str]) -> str | None:
    """The commit of the hub that `revision_to_read` means; None for a model's directory."""
    place = locate_model(model, "--model")
    return None if Path(place).is_absolute() else commit_of(place, revision_to_read(model, revision, adapters))


def trained_at(model: str, adapters: Sequence[str]) -> dict[str, str]:
    """The adapters that name a revision of this model of the hub, and which."""
    if Path(locate_model(model, "--model")).is_absolute():
        return {}
    pairs = ((adapter, _base_of(named_version(adapter)[1].directory.resolve())) for adapter in adapters)
    return {adapter: commit for adapter, (name, commit) in pairs if name == model and commit is not None}


def _base_of(version: Path) -> tuple[str | None, str | None]:
    """(name, revision) of the model under an adapter: as its run notes them, or else PEFT's configuration."""
    config = run_config_of(version)
    if config is not None:
        stated = read_settings(config).get("model")
        keys = ("name", "revision")
    else:
        stated = read_report(version / PEFT_CONFIG) if (version / PEFT_CONFIG).is_file() else None
        keys = ("base_model_name_or_path", "revision")
    if not isinstance(stated, Mapping):
        return None, None
    name, revision = (stated.get(key) for key in keys)
    return name, revision


def other_base(model: str, revision: str | None, commit: str | None, adapters: Sequence[str]) -> list[str]:
    """Warnings for adapters that were trained on another revision of the base model than the one that is read: its
    `commit`, of the `revision` that was given. Without one it is the adapters' own."""
    if revision is None:
        return []
    return [
        f"{adapter} was trained on {model} at {one}, and is measured on it at {commit}"
        for adapter, one in trained_at(model, adapters).items()
        if one not in (revision, commit)
    ]
