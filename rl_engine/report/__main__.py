"""The command: `python -m rl_engine.report RUN_DIR … [--output FILE] [--plots DIR] [--watch]`."""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import contextlib
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from evals.command import exit_explained, lasting_console, stoppable
from rewards.command import Command
from rl_engine.report.page import PROBLEMS, is_report, names_of, read_runs, write_page
from rl_engine.report.shown_run import ShownRun, check_run
from rl_engine.report.warnings import left_out
from rl_engine.run.origin.starts import STARTS
from rl_engine.run.records import METRICS, REPORT
from rollout.files.durable import check_writable
from rollout.files.ownership import is_figure, replaced
from rollout.stopping import Stopped

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
EVERY_S = 10.0


class PlotFormat(StrEnum):
    SVG = "svg"
    PNG = "png"


@app.command(cls=Command, epilog="Example: python -m rl_engine.report runs/quickstart --plots figures")
def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories; several are compared.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="File to write. Default: report.html in the first RUN_DIR.")
    ] = None,
    problems: Annotated[
        int, typer.Option(min=1, help="How many problems to show completions for, per step.")
    ] = PROBLEMS,
    plots: Annotated[
        Path | None, typer.Option(help="Directory to write each chart to as a separate file, for a paper.")
    ] = None,
    format: Annotated[PlotFormat, typer.Option(help="Format of the chart files.")] = PlotFormat.SVG,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite the page after each new step, until the runs end.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between updates with --watch.")] = EVERY_S,
) -> None:
    """Write a self-contained HTML report of one or several runs, finished or in progress."""
    target = output or runs[0] / REPORT
    console = lasting_console()
    console.soft_wrap = True
    try:
        with stoppable():
            if not watch and every != EVERY_S:
                raise ValueError(f"--every is {every:g}, and has no effect: give --watch too")
            check_formats(target, plots, format)
            notes = replaced({target: is_report}, "--output")
            runs = each_once(runs, console)
            for run in runs:
                check_run(run)
            for key, place in (("--output", target.parent), ("--plots", plots)):
                if place is not None:
                    check_writable(place, key)
            if watch:
                console.print(f"watching; {escape(str(target))} loads itself again, Ctrl-C ends it")
                for line in watch_runs(runs, target, problems, every):
                    console.print(escape(line))
            shown = read_runs(runs, problems)
            for line in (line for run in shown for line in left_out(run)):
                console.print(escape(line))
            if plots is not None:
                draw(console, shown, plots, format)
            for note in notes:
                console.print(escape(note))
            write_page(shown, target)
            console.print(f"report  {escape(str(target))}, {target.stat().st_size / 1e6:.1f} MB")
    except (ValueError, OSError) as error:
        exit_explained(error)


def check_formats(output: Path, plots: Path | None, format: PlotFormat) -> None:
    """Raises `ValueError` for a format that nothing is written in."""
    if output.suffix == ".pdf":
        raise ValueError(f"--output is {str(output)!r}: the page is HTML; give FILE.html, and print it to PDF")
    if plots is None and format is not PlotFormat.SVG:
        raise ValueError(f"--format is {format}, and has no effect: give --plots DIR too")


def each_once(runs: Sequence[Path], console: Console) -> list[Path]:
    """The runs without repetitions, which a shell's pattern beside a name gives and which compare a run with itself."""
    found: dict[Path, Path] = {}
    for run in runs:
        if found.setdefault(run.resolve(), run) is not run:
            console.print(f"{escape(str(run))} is given twice: it is shown once")
    return [*found.values()]


def draw(console: Console, shown: Sequence[ShownRun], plots: Path, format: PlotFormat) -> None:
    """Write each chart to a file. Raises `ValueError` if a file that is not one of our figures is in the way."""
    # matplotlib takes a second to load, and the page does not need it.
    from rl_engine.report.plot import chart_files, plot_charts

    lines = {name: run.lines for name, run in zip(names_of(shown), shown, strict=True)}
    for note in replaced(dict.fromkeys(chart_files(lines, plots, format.value), is_figure), "--plots"):
        console.print(escape(note))
    files = plot_charts(lines, plots, format.value)
    console.print(f"plots   {len(files)} in {escape(str(plots))}")


def watch_runs(runs: Sequence[Path], output: Path, problems: int, every_s: float) -> list[str]:
    """Rewrite the page whenever a run has recorded a step, until all runs have ended or Ctrl-C. Returns a line for each
    run that stopped early."""
    seen = None
    failed = False
    with contextlib.suppress(Stopped):
        while True:
            files = [run / name for run in runs for name in (METRICS, STARTS)]
            sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
            if sizes != seen:
                try:
                    shown = read_runs(runs, problems)
                except (FileNotFoundError, ValueError):
                    # A version being deleted or a half-written file will be settled next time; two failures in a row
                    # are an error.
                    if failed or seen is None:
                        raise
                    failed = True
                else:
                    if all(run.is_done or run.has_left for run in shown):
                        return [
                            f"{run.path} stopped after step {run.step} of {run.steps}: continue with --resume"
                            for run in shown
                            if not run.is_done
                        ]
                    write_page(shown, output, every_s)
                    seen, failed = sizes, False
            time.sleep(every_s)
    return []


if __name__ == "__main__":
    sys.exit(app())
