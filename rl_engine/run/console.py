"""Metrics → what a person watches: a header, one row a step, a summary with before and after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.command import new_console

if TYPE_CHECKING:
    from evals.scoring.report import EvalReport  # scipy takes seconds to load

WIDTHS = (7, 6, 8, 14, 6, 8, 8, 6, 7)
SCORES = ("avg", "low", "high", "tokens_mean")
TITLES = ("step", "reward", "accuracy", "held-out", "CoT", "tokens/s", "gap", "step s", "left")


@dataclass
class RunConsole:
    """The terminal of the main rank; other ranks have one that is quiet."""

    quiet: bool
    steps: int
    console: Console = field(default_factory=new_console)
    _step_s: list[float] = field(default_factory=list, init=False)
    _rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.console.quiet = self.quiet

    def print_rows(self, rows: dict[str, str]) -> None:
        """Print lines of name and value, the values aligned."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(f"[dim]{name}[/dim]", escape(value))
        self.console.print(table)

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Show what is going on while it goes on; nothing where the output is not a terminal."""
        if self.console.is_terminal and not self.quiet:
            with self.console.status(what, spinner="dots"):
                yield
        else:
            yield

    def row(self, metrics: dict[str, float], reports: Sequence[EvalReport]) -> None:
        """Print the row of a step, or of the evaluation before the first."""
        if self._rows % 25 == 0:
            self.console.print("[bold]" + _cells(TITLES) + "[/bold]", soft_wrap=True)
        self._rows += 1
        score = ""
        if reports:
            low, high = reports[0].interval
            score = f"{reports[0].avg:.1%} ±{(high - low) / 2:.1%}"
        step = int(metrics["step"])
        if "reward/mean" not in metrics:
            self.console.print(
                _cells(
                    (
                        f"{step}/{self.steps}",
                        "",
                        "",
                        score,
                        f"{reports[0].tokens_mean:.1f}" if reports else "",
                    )
                )
            )
            return
        self._step_s.append(metrics["time/step_s"])
        left = median(self._step_s[-10:]) * (self.steps - step)
        self.console.print(
            _cells(
                (
                    f"{step}/{self.steps}",
                    f"{metrics['reward/mean']:.3f}",
                    f"{metrics['reward/accuracy']:.3f}",
                    score,
                    f"{metrics['completion/tokens_mean']:.1f}",
                    f"{metrics['throughput/tokens_per_s']:,.0f}",
                    f"{metrics['sampler/logprob_gap_max']:.1e}",
                    f"{metrics['time/step_s']:.1f}",
                    str(timedelta(seconds=round(left))),
                )
            )
        )

    def note(self, text: str) -> None:
        self.console.print(escape(text))

    def summary(self, lines: Sequence[dict[str, float]], paths: dict[str, Path]) -> None:
        """Print before → after on every suite, and where everything is. `lines` are those of metrics.jsonl."""
        self.console.print()
        for name in sorted({key.split("/")[1] for line in lines for key in line if key.startswith("eval/")}):
            scored = [line for line in lines if f"eval/{name}/avg" in line]
            first, last = ({key: line[f"eval/{name}/{key}"] for key in SCORES} for line in (scored[0], scored[-1]))
            if len(scored) == 1:
                self.console.print(
                    f"[bold]{name}[/bold]  accuracy [bold]{last['avg']:.1%}[/bold] after step {scored[0]['step']:.0f}  "
                    f"(95 % interval {last['low']:.1%}–{last['high']:.1%}),  "
                    f"tokens a completion {last['tokens_mean']:.1f}"
                )
                continue
            # Without `eval.at_start` what is compared with is not the beginning.
            since = f", from step {scored[0]['step']:.0f} on" if scored[0]["step"] else ""
            self.console.print(
                f"[bold]{name}[/bold]  accuracy [bold]{first['avg']:.1%} → {last['avg']:.1%}[/bold]  (95 % intervals "
                f"{first['low']:.1%}–{first['high']:.1%} → {last['low']:.1%}–{last['high']:.1%}),  "
                f"tokens a completion {first['tokens_mean']:.1f} → {last['tokens_mean']:.1f}{since}"
            )
        self.print_rows({name: str(path) for name, path in paths.items()})


def _cells(values: Sequence[str]) -> str:
    return " ".join(value.rjust(width) for value, width in zip(values, WIDTHS, strict=False))
