"""Configurations → which of them can train in one process on one base model and one sampler, and why the others cannot.

Imports neither torch nor vllm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rollout.models import locate_model

SHARED = (
    "model.revision",
    "model.dtype",
    "rollout.max_num_seqs",
    "rollout.kv_cache_gib",
    "rollout.tensor_parallel_size",
)
"""Besides `model.name`, the keys that must be equal to share one base model and one sampler."""


@dataclass(frozen=True, slots=True)
class NamedConfig:
    """One run among several."""

    name: str
    """Its output directory, without the parts that all the runs have in common."""
    config: Config


@dataclass(slots=True)
class Group:
    """Cells that can share a base; `alone` says why a single cell cannot share with any other."""

    cells: list[NamedConfig]
    alone: str | None = None
    apart: list[str] = field(default_factory=list)
    """Why its cells are not in an earlier group, as text for the user."""

    @property
    def configs(self) -> list[Config]:
        return [cell.config for cell in self.cells]

    def resolved(self, configs: Sequence[Config]) -> Group:
        """The same group with these configurations of its cells."""
        cells = [replace(cell, config=config) for cell, config in zip(self.cells, configs, strict=True)]
        return replace(self, cells=cells)


def why_alone(config: Config) -> str | None:
    """Why a run cannot share with any other; None if it can."""
    if config.method == "full":
        return "method is full: every weight of its model is its own"
    if config.learner.zero_stage == 3:
        return "learner.zero_stage is 3, which shards the base model: give 0, 1 or 2"
    if config.rollout.placement == "ray":
        return "rollout.placement is ray, whose workers serve one run only: give inprocess"
    return None


def why_not_together(first: Config, second: Config) -> str | None:
    """Why two runs cannot share a base and a sampler; None if they can."""
    for config in (first, second):
        if (why := why_alone(config)) is not None:
            return why
    if locate_model(first.model.name) != locate_model(second.model.name):
        return f"model.name is {second.model.name}, and {first.model.name} there"
    for key in SHARED:
        ours, theirs = map(attrgetter(key), (second, first))
        if ours != theirs:
            return f"{key} is {ours}, and {theirs} there"
    return None


def groups_of(configs: Sequence[Config]) -> list[Group]:
    """The runs in groups that can share, in the order given.

    Raises `ConfigError` if two of them have the same output directory.
    """
    groups: list[Group] = []
    for cell in named(configs):
        alone, apart = why_alone(cell.config), []
        for group in groups if alone is None else ():
            if group.alone is not None:
                continue
            first = group.cells[0]
            if (why := why_not_together(first.config, cell.config)) is None:
                group.cells.append(cell)
                break
            apart.append(f"{cell.name} does not train together with {first.name}: {why}")
        else:
            notes = [f"{cell.name} trains alone: {alone}"] if alone else apart
            groups.append(Group([cell], alone, notes))
    return groups


def named(configs: Sequence[Config]) -> list[NamedConfig]:
    """The runs, each named by the part of its output directory that differs between them."""
    paths = [Path(config.output_dir).resolve() for config in configs]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ConfigError(
                f"output_dir: two of the configurations have {configs[index].output_dir}: give each its own in its "
                "file (on the command line a setting is for all of them)"
            )
    if len(paths) == 1:
        return [NamedConfig(paths[0].name, configs[0])]
    parts = [path.parts for path in paths]
    start = _common(parts)
    end = _common([tuple(reversed(each[start:])) for each in parts])
    names = ["/".join(each[start : len(each) - end]) for each in parts]
    if not all(names):  # one is inside another
        names = [config.output_dir for config in configs]
    return [NamedConfig(name, config) for name, config in zip(names, configs, strict=True)]


def _common(parts: Sequence[tuple[str, ...]]) -> int:
    """The length of the common prefix."""
    return next((i for i, same in enumerate(zip(*parts, strict=False)) if len({*same}) > 1), min(map(len, parts)))
