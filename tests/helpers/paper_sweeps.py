"""Sweeps with made-up results, for which the right conclusions are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl_engine.sweep.analysis import due_cells
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.results import Result
from tests.helpers.sweep_fake import sweep_of
from tests.helpers.sweep_runs import result_of_cell


def made_up(config: SweepConfig, score: Callable[[str, float, int], float | None]) -> dict[str, Result]:
    """Results of every cell as it comes due, from a score by arm, axis value and seed; a score of None is a failure."""
    found: dict[str, Result] = {}
    while due := due_cells(config, found):
        for cell in due:
            value = score(cell.arm, cell.axis_value, cell.seed)
            found[cell.name] = replace(
                result_of_cell(cell, "failed" if value is None else "done"),
                score=value,
                best=value,
                curves={} if value is None else {config.score.metric: [(0, 0.5), (3, 0.6), (12, value)]},
                error="" if value is not None else "exit code 1\nout of luck",
            )
    return found


RATES = {"rank 1": -2.9, "rank 8": -3.0, "full": -4.0}


def paper_sweep(output: Path, **values: Any) -> SweepConfig:
    return sweep_of(
        **{
            "grid": {"optim.lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
            "arms": {
                "rank 1": {"lora.rank": 1},
                "rank 8": {"lora.rank": 8},
                "full": {"method": "full", "optim.lr": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]},
            },
            "reference": "full",
            "confirm_seeds": [1, 2, 3],
            "output_dir": str(output),
            **values,
        }
    )


def parabola(arm: str, rate: float, seed: int) -> float:
    """A score of 0.92 at the arm's best rate. Seeds add the same offsets in all arms: ±0.01, and 0.05 for seed 0, which
    selects the rate."""
    return 0.92 - 0.1 * (math.log10(rate) - RATES[arm]) ** 2 + {0: 0.05, 1: -0.01, 2: 0.0, 3: 0.01}[seed]
