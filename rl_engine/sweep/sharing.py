"""A sweep's cells → which of them share a process, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_engine.sweep.cells import Target, arms_of, cell_of
from rl_engine.sweep.config import COMMANDS, SweepConfig

Point = tuple[str, float]
"""(arm, axis value): identifies cells that differ only in the seed."""
Targets = Mapping[Point, Target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    groups: tuple[tuple[Point, ...], ...] = ()
    """Points whose cells can run together; cells of a point in no group run alone."""
    why_apart: tuple[str, ...] = ()
    """Lines for the user, one per reason."""

    def group_of(self, point: Point) -> int | None:
        return next((number for number, group in enumerate(self.groups) if point in group), None)


def sharing_of(config: SweepConfig, targets: Targets) -> Sharing:
    """Which cells can share a process; none if `together` is 1."""
    if config.together == 1:
        return Sharing()
    groups_of = COMMANDS[config.command].groups
    assert groups_of is not None  # otherwise `together` has no effect, and was refused
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
    """The settings of one cell per point, each with its own output directory, and a map from directory to point."""
    settings, points = [], {}
    for arm in arms_of(config):
        for value in arm.axis_values:
            directory = str(config.output / "cells" / cell_of(config, arm, value, config.seeds[0]).name)
            settings.append(targets[arm.name, value].settings.model_copy(update={"output_dir": directory}))
            points[directory] = (arm.name, value)
    return settings, points


def room_lines(config: SweepConfig, targets: Targets, sharing: Sharing) -> Sequence[dict[str, str]]:
    """Lines for the user: what the processes of each group need. Raises `ConfigError` if that is more than there is."""
    reckon = COMMANDS[config.command].room
    if reckon is None or not sharing.groups:
        return []
    seeds = len(config.seeds)
    rows = []
    for group in sharing.groups:
        settings = [targets[point].settings for point in group for _ in range(seeds)]
        if len(settings) > 1:
            names = ", ".join(dict.fromkeys(arm for arm, _ in group))
            rows.append({"arms": names, **reckon(settings, config.together, config.jobs)})
    return rows
