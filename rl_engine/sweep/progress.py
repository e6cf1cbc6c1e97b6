"""Results as they come → lines, and on a terminal a bar below them with what is running."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from evals.command import new_console
from rl_engine.sweep.report import last_line
from rl_engine.sweep.results import Result
from rl_engine.sweep.runs import CellRun

REFRESH_S = 1.0


@dataclass
class SweepProgress:
    """What a person watches. It draws when it is told to: a thread of its own would make forking unsafe."""

    jobs: int
    console: Console = field(default_factory=new_console)
    _seconds: list[float] = field(default_factory=list, init=False)
    _drawn: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # What runs takes the room that is left.
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        done = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7))
        columns = (BarColumn(20), done, TextColumn("{task.description}", table_column=rest))
        self._bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True, expand=True)
        self._task = self._bar.add_task("", total=None)
        if self.console.is_terminal:
            self._bar.start()

    def result(self, result: Result, left: int) -> None:
        """One line of what came of a cell, and how many are left."""
        self._seconds.append(result.seconds)
        outcome = f"[bold]{result.score:.4g}[/bold]" if result.score is not None else f"[red]{result.status}[/red]"
        time_left = timedelta(seconds=round(median(self._seconds) * left / self.jobs))
        why = f"  {escape(last_line(result.error))}" if result.error else ""
        self.console.print(
            f"{escape(result.cell)}  {outcome}  {result.seconds:.0f} s;  {left} left, {time_left}{why}", soft_wrap=True
        )

    def running(self, runs: Sequence[CellRun], left: int) -> None:
        """Bring the bar up to date, not more than once in `REFRESH_S`."""
        if self.console.is_terminal and time.monotonic() > self._drawn + REFRESH_S:
            self._drawn = time.monotonic()
            shown = "  ".join(f"{run.cell.name} {max(run.step, 0)}/{run.target.steps or '?'}" for run in runs)
            done = len(self._seconds)
            self._bar.update(self._task, completed=done, total=done + left, description=escape(shown), refresh=True)

    def close(self) -> None:
        self._bar.stop()
