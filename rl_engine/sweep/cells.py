"""A sweep's configuration → its arms and their cells, each cell one run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_engine.config.fields import as_yaml, field_at, takes_text_alone
from rl_engine.config.file import CommandConfig, ConfigError, read_config, resolve
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rollout.hub import HubItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One line in the figures: the settings that all its cells share, and the axis values they run at.

    Example: `Arm(name="full, train.problems_per_step=16", family="full", at={"train.problems_per_step": 16},
    overrides={"method": "full"}, axis_values=(1e-5, 1e-4))`
    """

    name: str
    family: str
    """The arm's name in the configuration; empty if the configuration names no arms."""
    at: Mapping[str, Any]
    """Its values for the keys of the grid, except the axis."""
    overrides: Mapping[str, Any]
    """Its other settings."""
    axis_values: tuple[float, ...]
    """Ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run. Example: `Cell(name="rank-1_optim.lr=0.001_seed=0", arm="rank 1", axis_value=0.001, seed=0, …)`"""

    name: str
    """Name of the cell's directory; a function of arm, axis value and seed."""
    arm: str
    axis_value: float
    seed: int
    overrides: Mapping[str, Any]


def arms_of(config: SweepConfig) -> tuple[Arm, ...]:
    """Every named arm at every combination of the grid's keys, except the axis. Raises `ConfigError`."""
    arms = []
    for family, given in (config.arms or {"": {}}).items():
        grid = {key: _own_values(given, key, values) for key, values in config.grid.items()}
        own = {key: value for key, value in given.items() if key not in grid}
        overrides = {**_in_effect(config, given), **own}
        others = {key: values for key, values in grid.items() if key != config.axis}
        for values in itertools.product(*others.values()):
            at = dict(zip(others, values, strict=True))
            coordinates = [f"{key}={_text(value)}" for key, value in at.items() if len(others[key]) > 1]
            arms.append(
                Arm(
                    name=", ".join([family, *coordinates] if family else coordinates) or Path(config.base).stem,
                    family=family,
                    at=at,
                    overrides=overrides,
                    axis_values=_axis_values(config.axis, grid[config.axis]),
                )
            )
    homes: dict[str, Arm] = {}
    for arm in arms:
        for value in arm.axis_values:
            other = homes.setdefault(cell_of(config, arm, value, 0).name, arm)
            if other is not arm:
                raise ConfigError(f"two arms would share a directory: {other.name}, {arm.name}")
    return tuple(arms)


def _in_effect(config: SweepConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """`config.set` without the settings that an arm makes ineffective, such as `lora.alpha` with `method: full`."""
    if not given:
        return dict(config.set)
    first = {key: _own_values(given, key, values)[:1] for key, values in config.grid.items()}
    chosen = {**given, **{key: values[0] for key, values in first.items() if values}}
    layers = [("set", arguments_of(config.set)), ("arm", arguments_of(chosen))]
    try:
        _, idle = resolve(COMMANDS[config.command].schema, config.base, *layers)
    except ConfigError:
        return dict(config.set)  # `target_of` reports it for the arm's first cell
    return {key: value for key, value in config.set.items() if not any(f"{key}.".startswith(f"{off}.") for off in idle)}


def refuse_idle(config: SweepConfig) -> None:
    """Raises `ConfigError` for an entry of `set` that no cell uses. Checked before running, not before redrawing."""
    for key, value in config.set.items():
        everywhere = config.arms and all(key in given for given in config.arms.values())
        if why := f"grid.{key} replaces it" if key in config.grid else "every arm gives its own" * bool(everywhere):
            raise ConfigError(f"set.{key} is {as_yaml(value)}, and has no effect: {why}")


def _own_values(given: Mapping[str, Any], key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    own = given.get(key, values)
    return tuple(own) if isinstance(own, list | tuple) else (own,)


def _axis_values(axis: str, values: tuple[Any, ...]) -> tuple[float, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"grid.{axis}: the axis takes positive numbers, not {value!r}")
    if len({*values}) < len(values):
        raise ConfigError(f"grid.{axis}: a value is given twice in {', '.join(map(str, values))}")
    return tuple(sorted(values))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def cell_of(config: SweepConfig, arm: Arm, axis_value: float, seed: int) -> Cell:
    parts = (arm.name, f"{config.axis}={axis_value}", f"seed={seed}")
    name = "_".join(re.sub(r"[^\w.=+-]+", "-", part).strip("-") for part in parts)
    overrides = {**arm.overrides, **arm.at, config.axis: axis_value, "seed": seed}
    return Cell(name=name, arm=arm.name, axis_value=axis_value, seed=seed, overrides=overrides)


def arguments_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted key as command-line arguments."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _check_texts(schema: type[CommandConfig], settings: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a number or boolean where text is expected: 1.10 would arrive as 1.1, `no` as false."""
    for key, value in settings.items():
        info = field_at(schema, key)
        if isinstance(value, bool | int | float) and info is not None and takes_text_alone(info.annotation):
            raise ConfigError(f"{key} takes text, and YAML reads it as {as_yaml(value)}: write it in quotes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a cell's run must match and reach."""

    config_hash: str
    """Digest of the settings its configuration states, except seed and output_dir. Defaults are left out, so that a new
    one changes nothing."""
    wanted_of_hub: tuple[HubItem, ...] = ()
    steps: int | None
    """Step of the last line of a complete metrics.jsonl; None if only the exit code tells that the run is complete."""
    settings: Any
    """Settings of the cell with the first seed: an instance of the command's `schema`."""


def target_of(config: SweepConfig, arm: Arm, axis_value: float) -> Target:
    """The target of the cells of one point. Raises `ConfigError` naming the arm for invalid settings."""
    command = COMMANDS[config.command]
    cell = cell_of(config, arm, axis_value, config.seeds[0])
    try:
        _check_texts(command.schema, cell.overrides)
        settings: Any = read_config(
            command.schema, config.base, arguments_of(cell.overrides), place="the sweep's settings"
        )
        if why := command.unmeasured(settings, config.score.metric):
            raise ConfigError(f"score.metric is {config.score.metric!r}, which no run would have: {why}")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(_named(config, cell, error)) from error
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"seed", "output_dir"})
    digest = hashlib.sha256(json.dumps([config.command, given], sort_keys=True).encode()).hexdigest()
    wanted = tuple(command.wanted_of_hub(settings))
    return Target(config_hash=digest, steps=settings.train.steps, wanted_of_hub=wanted, settings=settings)


def check_cell(config: SweepConfig, cell: Cell, target: Target) -> None:
    """Check that what a cell reads exists, as far as that can be known at once. A cell that was started before is
    resumed, and reads less. Raises `ConfigError` naming the arm."""
    settings = target.settings.model_copy(update={"output_dir": str(config.output / "cells" / cell.name / "run")})
    try:
        COMMANDS[config.command].check(settings, resume=True)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(_named(config, cell, error)) from error


def _named(config: SweepConfig, cell: Cell, error: Exception) -> str:
    return f"arm {cell.arm}, {config.axis}={cell.axis_value}: {error}"
