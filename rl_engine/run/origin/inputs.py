"""A run's model and reward function → their commit or digests, so that they stay, or a change is seen on resumption."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TypeVar

from rl_engine.config import Config
from rl_engine.config.fields import value_at
from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.run.resumption import settings_before
from rollout.files.weights import weights_in
from rollout.hub import commit_of
from rollout.models import locate_model

MODEL, REWARD = "model.name", "rewards.function"
C = TypeVar("C", Config, SftConfig)


def pin_revision(config: C, *, resume: bool) -> C:
    """The configuration with the commit of a model of the hub in `model.revision`, if that is unset. Whatever is pushed
    there later, a resumed run continues with the commit that it began with.

    A run of an earlier version noted none: it continues with the newest.
    """
    if config.model.revision is not None or Path(locate_model(config.model.name)).is_absolute():
        return config
    before = settings_before(Path(config.output_dir)) if resume else None
    commit = commit_of(config.model.name) if before is None else value_at(before, "model.revision")
    return config.with_values("model", revision=commit)


def inputs_of(config: Config | SftConfig) -> dict[str, str]:
    """Key → digest of what it names, if that is a file on this machine."""
    found = {MODEL: weights_in(Path(locate_model(config.model.name)))}
    source = reward_source(config)
    if source is not None and source.is_file():
        found[REWARD] = hashlib.sha256(source.read_bytes()).hexdigest()
    return {key: digest for key, digest in found.items() if digest is not None}


def changed_inputs(config: Config | SftConfig, began_with: Mapping[str, str]) -> list[str]:
    """Warnings about inputs that have changed. Raises `ConfigError` for changed weights, since the trained update
    belongs to the original ones."""
    now = inputs_of(config)
    changed = [key for key in now if began_with.get(key, now[key]) != now[key]]
    if MODEL in changed:
        raise ConfigError(
            f"model.name ({config.model.name}): its weights have changed since the run in {config.output_dir} last "
            "trained, and what it trained belongs to the old ones. Restore them, or give another output_dir"
        )
    return [
        f"warning: rewards.function: {reward_source(config)} has changed since the run last trained: rewards before "
        "and after may not be comparable"
        for key in changed
        if key == REWARD
    ]


def reward_source(config: Config | SftConfig) -> Path | None:
    """The file that defines the user's reward function, if any."""
    function = config.rewards.function if isinstance(config, Config) else None
    if function is None or function.startswith("trl:"):
        return None
    spec = find_module(function.partition(":")[0])
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def find_module(name: str) -> ModuleSpec | None:
    """Where Python would find a module, without importing its parent packages."""
    top, *parts = name.split(".")
    try:
        # The current directory is on the path of the grading processes.
        found = importlib.util.find_spec(top) or PathFinder.find_spec(top, [str(Path.cwd())])
    except ValueError:  # an empty name
        return None
    path = top
    for part in parts:
        if found is None or found.submodule_search_locations is None:
            return None
        path = f"{path}.{part}"
        found = PathFinder.find_spec(path, found.submodule_search_locations)
    return found
