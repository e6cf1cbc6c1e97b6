"""Sweeps of fake runs and the results of their cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil

from rl_engine.sweep.cells import Cell
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.results import Result
from rl_engine.sweep.schedule import run_sweep, targets_of

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
