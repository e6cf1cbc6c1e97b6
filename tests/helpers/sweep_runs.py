"""Sweeps of fake runs and the results of their cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from rl_engine.sweep.cells import Cell
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.results import Result
from rl_engine.sweep.schedule import run_sweep, targets_of
from rl_engine.sweep.work import processes
from rl_engine.sweep.work.runs import CellRun

ROOT = Path(__file__).parents[2]

SweepMaker = Callable[..., SweepConfig]


def run(config: SweepConfig, *, retry_failed: bool = False) -> dict[str, Result]:
    results, stop = run_sweep(config, targets_of(config), retry_failed=retry_failed)
    assert stop.signum is None
    return results.by_cell


def attempts(config: SweepConfig, cell: str) -> list[dict[str, Any]]:
    path = config.output / "cells" / cell / "run" / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def let_time_pass_for_the_hung(config: SweepConfig, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put every cell past its time limit while its process hangs in `cell`, and none at any other time: on a busy
    machine, a few seconds would be over before a healthy cell has begun."""

    def seconds(run: CellRun) -> float:
        hung, own = attempts(config, cell), attempts(config, run.cell.name)
        return 1e6 if hung and own and hung[-1]["pid"] == own[-1]["pid"] and alive(own[-1]["pid"]) else 0.0

    monkeypatch.setattr(CellRun, "seconds", property(seconds))
    monkeypatch.setattr(processes, "GRACE_S", 0.2)


def result_of_cell(cell: Cell, status: Literal["done", "failed"]) -> Result:
    """The result of a cell; set further fields with `dataclasses.replace`."""
    return Result(
        cell=cell.name,
        arm=cell.arm,
        axis_value=cell.axis_value,
        seed=cell.seed,
        overrides=cell.overrides,
        config_hash="",
        status=status,
        score=0.5,
        best=0.5,
        curves={},
        seconds=1.0,
        error="",
    )
