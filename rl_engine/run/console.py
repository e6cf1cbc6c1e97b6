"""Metrics → what the user watches: a legend, a header, one row per step; at the end the results and the next steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.command import lasting_console

if TYPE_CHECKING:
    from evals.scoring.report import EvalReport  # scipy takes seconds to load

SCORES = ("avg", "low", "high", "tokens_mean")
ROWS_OF_A_HEADER = 25
LAST_ROWS = 5
"""The header is not repeated for this many rows before the end."""
EXCERPT = 400
"""Characters shown of a completion; the middle of a longer one is left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of steps."""

    title: str
    width: int
    meaning: str
    """Its text in the legend; empty if the title is enough."""
    text: Callable[[Mapping[str, float]], str]


def _number(name: str, form: str) -> Callable[[Mapping[str, float]], str]:
    return lambda line: format(line[name], form) if name in line else ""


# `score`, `steps` and `left_s` are not in the step's line of metrics.jsonl: `row` adds them.
COLUMNS = (
    Column("step", 7, "", lambda line: f"{line['step']:.0f}/{line['steps']:.0f}"),
    Column("reward", 6, "mean of the step's rewards", _number("reward/mean", ".3f")),
    Column("accuracy", 8, "share of the step's completions that are correct", _number("reward/accuracy", ".3f")),
    Column(
        "held-out",
        14,
        "score on the first suite ± half of its 95 % interval",
        lambda line: f"{line['score']:.1%} ±{line['half_interval']:.1%}" if "score" in line else "",
    ),
    Column("CoT", 6, "mean tokens per completion", _number("completion/tokens_mean", ".1f")),
    Column("tokens/s", 8, "completion tokens per second of the whole step", _number("throughput/tokens_per_s", ",.0f")),
    Column(
        "gap",
        8,
        "largest |learner − sampler| log-probability of a token, in nats: near 0 if both use the same adapter",
        _number("sampler/logprob_gap_max", ".1e"),
    ),
    Column("step s", 6, "", _number("time/step_s", ".1f")),
    Column("left", 7, "", lambda line: str(timedelta(seconds=round(line["left_s"]))) if "left_s" in line else ""),
)
# Columns that a narrow terminal drops, in this order.
DISPENSABLE = ("tokens/s", "step s", "CoT", "left", "gap")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    """The policy's answer to the first problem of the first suite."""

    step: int
    problem: str
    reference: str
    completion: str
    verdict: str


@dataclass
class RunConsole:
    """The terminal output of the main rank; quiet on other ranks."""

    quiet: bool
    steps: int
    console: Console = field(default_factory=lasting_console)
    reward_is_accuracy: bool = False
    """Whether the reward is 1 for a right answer and 0 otherwise, so that one column shows both."""
    _step_s: list[float] = field(default_factory=list, init=False)
    _rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.console.quiet = self.quiet

    def print_rows(self, rows: Mapping[str, str]) -> None:
        """Print names and values with the values aligned, folded to the width of a terminal."""
        if not self.console.is_terminal:
            width = max(map(len, rows), default=0) + 2
            for name, value in rows.items():
                lines = value.splitlines() or [""]
                for start, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True):
                    self.console.print(escape(f"{start:<{width}}{line}".rstrip()), soft_wrap=True)
            return
        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(f"[dim]{escape(name)}[/dim]", escape(value))
        self.console.print(table)

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Show the current phase while it lasts; prints nothing if the output is not a terminal."""
        if self.console.is_terminal and not self.quiet:
            with self.console.status(what, spinner="dots"):
                yield
        else:
            yield

    def row(self, metrics: Mapping[str, float], reports: Sequence[EvalReport]) -> None:
        """Print the row of a step, or of the evaluation before the first, if there was one."""
        line = self.line_of(metrics, reports)
        columns = self._columns()
        if not any(column.text(line) for column in columns[1:]):
            return
        if self._rows == 0:
            self.console.print()
            self.print_rows({column.title: column.meaning for column in columns if column.meaning})
        if self._rows == 0 or (self._rows % ROWS_OF_A_HEADER == 0 and self.steps - metrics["step"] >= LAST_ROWS):
            titles = " ".join(column.title.rjust(column.width) for column in columns)
            self.console.print(f"[bold]{titles}[/bold]", soft_wrap=True)
        self._rows += 1
        cells = (column.text(line).rjust(column.width) for column in columns)
        self.console.print(" ".join(cells).rstrip(), soft_wrap=True)

    def line_of(self, metrics: Mapping[str, float], reports: Sequence[EvalReport]) -> dict[str, float]:
        """The values that the columns show for a step; call it once per step."""
        line = {**metrics, "steps": self.steps}
        if reports:
            low, high = reports[0].interval
            line |= {"score": reports[0].avg, "half_interval": (high - low) / 2}
            line.setdefault("completion/tokens_mean", reports[0].tokens_mean)
        if "time/step_s" in metrics:
            self._step_s.append(metrics["time/step_s"])
            line["left_s"] = median(self._step_s[-10:]) * (self.steps - metrics["step"])
        return line

    def _columns(self) -> list[Column]:
        """The columns that are not redundant and fit on the terminal."""
        shown = [column for column in COLUMNS if not (self.reward_is_accuracy and column.title == "reward")]
        for title in DISPENSABLE:
            if sum(column.width + 1 for column in shown) - 1 > self.console.width:
                shown = [column for column in shown if column.title != title]
        return shown

    def note(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    def summary(self, lines: Sequence[Mapping[str, float]], paths: Mapping[str, Path]) -> None:
        """Print before → after for every suite, and where everything is. `lines`: from metrics.jsonl, `asked_alike`."""
        self.console.print()
        for name in dict.fromkeys(key.split("/")[1] for line in lines for key in line if key.startswith("eval/")):
            scored = [line for line in lines if f"eval/{name}/avg" in line]
            first, last = ({key: line[f"eval/{name}/{key}"] for key in SCORES} for line in (scored[0], scored[-1]))
            if len(scored) == 1:
                self.console.print(
                    f"[bold]{name}[/bold]  accuracy [bold]{last['avg']:.1%}[/bold] after step {scored[0]['step']:.0f}  "
                    f"(95 % interval {last['low']:.1%}–{last['high']:.1%}),  "
                    f"tokens per completion {last['tokens_mean']:.1f}"
                )
                continue
            # Without `eval.at_start` the first score is not from the beginning of the run.
            since = f", from step {scored[0]['step']:.0f} on" if scored[0]["step"] else ""
            self.console.print(
                f"[bold]{name}[/bold]  accuracy [bold]{first['avg']:.1%} → {last['avg']:.1%}[/bold]  (95 % intervals "
                f"{first['low']:.1%}–{first['high']:.1%} → {last['low']:.1%}–{last['high']:.1%}),  "
                f"tokens per completion {first['tokens_mean']:.1f} → {last['tokens_mean']:.1f}{since}"
            )
        self.print_rows({name: str(path) for name, path in paths.items()})

    def examples(self, examples: Sequence[ShownAnswer]) -> None:
        """Print one problem with its completions before and after training."""
        if len(examples) < 2:
            return
        before, after = examples[0], examples[-1]
        rows = {"problem": _excerpt(before.problem), "reference": _excerpt(before.reference)}
        for one in (before, after):
            rows[f"step {one.step}, {one.verdict.replace('_', ' ')}"] = _excerpt(one.completion)
        self.console.print("\n[bold]one problem, before and after[/bold]")
        self.print_rows(rows)

    def commands(self, commands: Mapping[str, str]) -> None:
        """Print commands exactly as they can be typed: not folded and without a prefix."""
        self.console.print("\n[bold]next[/bold]")
        for purpose, command in commands.items():
            self.console.print(f"[dim]# {escape(purpose)}[/dim]")
            self.console.print(escape(command), soft_wrap=True)


def _excerpt(text: str) -> str:
    """The text, with a mark instead of the middle if it is long."""
    text = text.strip()
    if len(text) <= EXCERPT:
        return text
    return f"{text[: EXCERPT // 2]} […] {text[-EXCERPT // 2 :]}"
