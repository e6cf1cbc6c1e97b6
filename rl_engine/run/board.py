"""Several runs' metrics → what the user watches: a table with one row per run, or plain lines without a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from evals.command import lasting_console
from rewards.command import to_stderr
from rl_engine.run.console import COLUMNS, RunConsole, ShownAnswer

if TYPE_CHECKING:
    from evals.scoring.report import EvalReport

SHOWN = tuple(column for column in COLUMNS if column.title in ("step", "reward", "held-out", "CoT", "gap"))
FIRST_LINES = ("rate", "training", "learning")
"""The rows of a run's opening summary in which runs trained together may differ; warnings are shown too."""
WAITS, BEGUN, DONE, FAILED, STOPPED = "waits", "begun", "done", "failed", "stopped"
STATE = "state: "
"""Prefix of a line that reports, if there is no table, that a run has begun or how it ended."""


@dataclass
class Board:
    """The terminal of the main rank, for all runs."""

    quiet: bool
    names: Sequence[str]
    console: Console = field(default_factory=lasting_console)
    _cells: dict[str, dict[str, str]] = field(default_factory=dict, init=False)
    _states: dict[str, str] = field(default_factory=dict, init=False)
    _live: Live | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.console.quiet = self.quiet
        self._cells = {name: {} for name in self.names}
        self._states = dict.fromkeys(self.names, WAITS)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table on the terminal during the block; notes are printed above it."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        # Redraw only on changes: a refresh thread would draw while a run is updating the table.
        with Live(self._table(), console=self.console, auto_refresh=False) as self._live:
            yield
        self._live = None

    def note(self, name: str, text: str) -> None:
        """Print text about one run, every line with the run's name."""
        for line in text.splitlines():
            self.console.print(f"[bold]{escape(name)}[/bold]  {escape(line)}", soft_wrap=True)

    def error(self, name: str, text: str) -> None:
        """Print what ended a run: to stderr, as for a single run, unless a table is shown."""
        message = f"error: {text.rstrip()}"
        if self._live is None and not self.quiet:
            for line in message.splitlines():
                to_stderr(f"[bold red]{escape(name)}[/bold red]  {escape(line)}")
        else:
            self.note(name, message)

    def state(self, name: str, state: str) -> None:
        self._states[name] = state
        self._draw()
        if state in (BEGUN, DONE, FAILED, STOPPED) and not self.console.is_terminal:
            self.note(name, f"{STATE}{state}")

    def figures(self, name: str, figures: Mapping[str, str]) -> None:
        """Update a run's figures; a score stays until the next one."""
        self._cells[name] |= {title: text for title, text in figures.items() if text}
        self._draw()
        if not self.console.is_terminal:
            self.note(name, "  ".join(f"{title} {text}" for title, text in figures.items() if text))

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2))
        table.add_column("run")
        for column in SHOWN:
            table.add_column(column.title, justify="right")
        table.add_column("")
        for name, cells in self._cells.items():
            table.add_row(escape(name), *(cells.get(column.title, "") for column in SHOWN), escape(self._states[name]))
        return table


@dataclass
class CellConsole(RunConsole):
    """The console of one run on a shared board. It prints less than a single run's; the run's files are complete."""

    board: Board = field(kw_only=True)
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        self.console = self.board.console

    def print_rows(self, rows: Mapping[str, str]) -> None:
        for title, text in rows.items():
            if title in FIRST_LINES or title.startswith("beware"):
                self.note(f"{title}: {' '.join(text.split())}")

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        self.board.state(self.name, what)
        yield

    def row(self, metrics: Mapping[str, float], reports: Sequence[EvalReport]) -> None:
        line = self.line_of(metrics, reports)
        figures = {column.title: column.text(line) for column in SHOWN}
        if any(text for title, text in figures.items() if title != "step"):
            self.board.figures(self.name, figures)

    def note(self, text: str) -> None:
        self.board.note(self.name, text)

    def summary(self, lines: Sequence[Mapping[str, float]], paths: Mapping[str, Path]) -> None:
        for name in sorted({key.split("/")[1] for line in lines for key in line if key.startswith("eval/")}):
            scores = [line[f"eval/{name}/avg"] for line in lines if f"eval/{name}/avg" in line]
            self.note(f"{name}: accuracy {' → '.join(f'{score:.1%}' for score in (*scores[:1], *scores[1:][-1:]))}")
        self.note(f"adapter: {paths.get('best adapter', paths['adapter'])}")

    def examples(self, examples: Sequence[ShownAnswer]) -> None:
        """Not shown: they are in the run's report."""

    def commands(self, commands: Mapping[str, str]) -> None:
        """Not shown: they are the same for every run except for its path."""
