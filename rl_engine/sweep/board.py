"""A sweep's results and its cells' metrics → a live table with one row per cell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rl_engine.config.file import ConfigError
from rl_engine.run.locks import LOCK, is_held, locks_on_one_machine
from rl_engine.run.records import METRICS, read_metrics
from rl_engine.sweep.analysis import Found, cells_left, due_cells
from rl_engine.sweep.cells import Cell, arms_of, cell_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import reason_of
from rl_engine.sweep.results import RESULTS, Results, curve_of
from rl_engine.sweep.sharing import Targets

WATCH_S = 2.0
OTHER_LINES = 8
"""Lines of the terminal that the table leaves free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    cell: Cell
    step: str
    """`3/12`; empty before the first step."""
    values: tuple[str, ...]
    """The newest values of the score's metric and of the curves."""
    state: str
    waits: bool
    """Whether the cell has not started."""


def rows_of(config: SweepConfig, targets: Targets, found: Found) -> list[Row]:
    """A row for each cell that has a result or is due, in the sweep's order."""
    due = {cell.name for cell in due_cells(config, found)}
    cells = [
        cell_of(config, arm, value, seed)
        for arm in arms_of(config)
        for value in arm.axis_values
        for seed in (*config.seeds, *config.confirm_seeds)
    ]
    return [_row(config, targets, found, cell) for cell in cells if cell.name in found or cell.name in due]


def _row(config: SweepConfig, targets: Targets, found: Found, cell: Cell) -> Row:
    run = config.output / "cells" / cell.name / "run"
    lines, result = read_metrics(run), found.get(cell.name)
    curves = [curve_of(lines, name) for name in config.metrics]
    state = ""
    if result is not None:
        state = result.status if result.status == "done" else f"{result.status}: {reason_of(result.error)}"
    elif lines:
        state = f"{max(0.0, time.time() - (run / METRICS).stat().st_mtime):.0f} s since its last line"
    steps = targets[cell.arm, cell.axis_value].steps
    return Row(
        cell=cell,
        step=f"{int(lines[-1]['step'])}/{steps or '?'}" if lines else "",
        values=tuple(f"{curve[-1][1]:.4g}" if curve else "" for curve in curves),
        state=state,
        waits=result is None and not lines,
    )


def cell_table(config: SweepConfig, rows: Sequence[Row], most: int | None = None) -> Table:
    """The table of at most `most` rows: running cells take precedence, then ended ones, then waiting ones."""
    left_out = 0
    if most is not None and len(rows) > most:
        wanted = sorted(rows, key=lambda row: (row.waits, not row.state.endswith("last line")))[:most]
        left_out, rows = len(rows) - most, [row for row in rows if row in wanted]
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("cell", no_wrap=True)
    for title in ("step", *config.metrics):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.cell.name), row.step, *row.values, escape(row.state))
    if left_out:
        table.add_row(f"and {left_out} more")
    return table


def room_of(console: Console) -> int:
    return max(1, console.height - OTHER_LINES)


def watch(config: SweepConfig, targets: Targets, console: Console) -> Found:
    """Draw the table of a sweep that runs elsewhere until it is done, and return its results. If the output is not a
    terminal, the table is printed once per result. Raises `ConfigError` if cells are left and no sweep is running."""
    drawn = -1
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            at_work = is_held(config.output / LOCK)  # first: a sweep that ends now has written all results
            found = Results(config.output / RESULTS).by_cell
            rows = rows_of(config, targets, found)
            if live is not None:
                live.update(cell_table(config, rows, room_of(console)), refresh=True)
            elif len(found) != drawn:
                drawn = len(found)
                console.print(cell_table(config, rows))
            if not cells_left(config, found):
                return found
            if not at_work:
                elsewhere = locks_on_one_machine(config.output)
                unless = elsewhere and f", unless another machine is running them ({elsewhere})"
                raise ConfigError(
                    f"output_dir: no sweep is running in {config.output} on this machine, and "
                    f"{cells_left(config, found)} cells are left: run the command without --watch{unless}"
                )
            time.sleep(WATCH_S)
