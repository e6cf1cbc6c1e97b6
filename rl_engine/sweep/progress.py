"""Results as they arrive → console lines, with a live table of the cells below them on a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from evals.command import lasting_console
from rl_engine.sweep.analysis import Found
from rl_engine.sweep.board import cell_table, room_of, rows_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import reason_of
from rl_engine.sweep.results import Result
from rl_engine.sweep.sharing import Targets

REFRESH_S = 1.0


@dataclass
class SweepProgress:
    """The console output of a sweep. It draws only when called: a thread of its own would make forking unsafe."""

    config: SweepConfig
    targets: Targets
    console: Console = field(default_factory=lasting_console)
    _seconds: list[float] = field(default_factory=list, init=False)
    _drawn: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        if self.console.is_terminal:
            self._live.start()

    def note(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    def result(self, result: Result, left: int) -> None:
        """Print a line with a cell's result and how many cells are left."""
        self._seconds.append(result.seconds)
        outcome = f"[bold]{result.score:.4g}[/bold]" if result.score is not None else f"[red]{result.status}[/red]"
        at_once = self.config.jobs * self.config.together
        time_left = timedelta(seconds=round(median(self._seconds) * left / at_once))
        why = f"  {escape(reason_of(result.error))}" if result.error else ""
        self.console.print(
            f"{escape(result.cell)}  {outcome}  {result.seconds:.0f} s;  {left} left, {time_left}{why}", soft_wrap=True
        )

    def running(self, found: Found) -> None:
        """Update the table, at most once every `REFRESH_S`."""
        if self.console.is_terminal and time.monotonic() > self._drawn + REFRESH_S:
            self._drawn = time.monotonic()
            rows = rows_of(self.config, self.targets, found)
            self._live.update(cell_table(self.config, rows, room_of(self.console)), refresh=True)

    def close(self) -> None:
        self._live.stop()
