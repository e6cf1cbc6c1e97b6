"""A sweep's cells → which of them run in one process, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_engine.sweep.cells import Target, arms_of, cell_of
from rl_engine.sweep.config import COMMANDS, SweepConfig

Point = tuple[str, float]
"""Arm and axis value: cells that differ in nothing but the seed."""
Targets = Mapping[Point, Target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    groups: tuple[tuple[Point, ...], ...] = ()
    """Points whose cells can run together; a point that is in none runs each of its cells alone."""
    why_apart: tuple[str, ...] = ()
    """For people, a line for each reason."""

    def group_of(self, point: Point) -> int | None:
        return next((number for number, group in enumerate(self.groups) if point in group), None)


def sharing_of(config: SweepConfig, targets: Targets) -> Sharing:
    """Nothing is shared where `together` is 1."""
    if config.together == 1:
        return Sharing()
    groups_of = COMMANDS[config.command].groups
    assert groups_of is not None  # else `together` has no effect, and is refused
    settings, points = _settings(config, targets)
    groups, alone, apart = [], dict[str, list[str]](), list[str]()
    for group in groups_of(settings):
        members = [points[cell.config.output_dir] for cell in group.cells]
        if group.alone is not None:
            alone.setdefault(group.alone, []).append(members[0][0])
        else:
            groups.append(tuple(members))
            apart += group.apart
    lines = [f"{', '.join(dict.fromkeys(arms))}: each cell runs alone: {why}" for why, arms in alone.items()]
    return Sharing(groups=tuple(groups), why_apart=(*lines, *apart))


def _settings(config: SweepConfig, targets: Targets) -> tuple[list[Any], dict[str, Point]]:
    """The settings of a cell of every point, in a directory by which it is known, and the point of each directory."""
    settings, points = [], {}
    for arm in arms_of(config):
        for value in arm.axis_values:
            directory = str(config.output / "cells" / cell_of(config, arm, value, config.seeds[0]).name)
            settings.append(targets[arm.name, value].settings.model_copy(update={"output_dir": directory}))
            points[directory] = (arm.name, value)
    return settings, points


def room_lines(config: SweepConfig, targets: Targets, sharing: Sharing) -> Sequence[dict[str, str]]:
    """For people: what the processes of each group need. Raises `ConfigError` where that is more than there is."""
    reckon = COMMANDS[config.command].room
    if reckon is None or not sharing.groups:
        return []
    seeds = len(config.seeds)
    told = []
    for group in sharing.groups:
        settings = [targets[point].settings for point in group for _ in range(seeds)]
        if len(settings) > 1:
            names = ", ".join(dict.fromkeys(arm for arm, _ in group))
            told.append({"arms": names, **reckon(settings, config.together, config.jobs)})
    return told
