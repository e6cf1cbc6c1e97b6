"""Runs without curves and without a report, which take as long as the few small steps of a test.

`tests/train/test_train.py` and the directory of each run in `tests/train/test_concurrent.py` are looked at with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl_engine.train import loop, one_run


def no_curves(run: Path) -> None: ...


def no_report(runs: Any, output: Path) -> Path:
    return output


def draw_nothing() -> None:
    """For all runs of this process: call it in a fork."""
    # setattr, because mypy rejects assignments to a module's functions.
    setattr(loop, "plot_run", no_curves)  # noqa: B010
    setattr(one_run, "write_report", no_report)  # noqa: B010
