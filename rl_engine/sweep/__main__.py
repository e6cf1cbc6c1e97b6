"""The command: `python -m rl_engine.sweep --config NAME_OR_PATH [--retry-failed] [--dry-run] [--watch]
[key.sub=value …]`, or `--redraw SUMMARY` to redraw the figures of existing results.

Imports neither torch nor matplotlib.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from evals.command import exit_explained, exit_with_error, lasting_console, print_table, stoppable
from rewards.streams import check_heard
from rl_engine.command import NO_SPACE, ConfiguredCommand, Overrides, help_end
from rl_engine.config.file import ConfigError, read_config
from rl_engine.sweep.analysis import Analysis, Found, cells_left, due_cells
from rl_engine.sweep.board import watch
from rl_engine.sweep.cells import check_cell
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.placement import cards_here, dealt
from rl_engine.sweep.report import SUMMARY, TABLE, best_rows, console_table, redraw, score_rows, write_report
from rl_engine.sweep.results import RESULTS, Results
from rl_engine.sweep.schedule import check_ours, check_unchanged, run_sweep, targets_of
from rl_engine.sweep.sharing import Sharing, Targets, room_lines, sharing_of
from rollout.files.durable import check_writable
from rollout.hub import check_hub

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = lasting_console()
REPORT_S = 60.0
"""Shortest time between reports. A report takes seconds of CPU time, which runs of half a minute need themselves."""


class GridCommand(ConfiguredCommand):
    schema = SweepConfig


@app.command(cls=GridCommand, epilog=help_end("rl_engine.sweep", "--config sweep_rates.yaml --dry-run"))
def main(
    config: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped sweep.")] = None,
    overrides: Overrides = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all cells, list those still to run, and stop.")
    ] = False,
    watches: Annotated[
        bool, typer.Option("--watch", help="Follow a sweep that runs elsewhere, until it is done.")
    ] = False,
    redraws: Annotated[
        list[Path] | None, typer.Option("--redraw", help="A summary.json whose table and figures to redraw next to it.")
    ] = None,
) -> None:
    """Run a grid of configurations, or continue one that was stopped, and write its table and figures."""
    try:
        others = {"--retry-failed": retry_failed, "--dry-run": dry_run, "--watch": watches}
        given = [*(name for name, is_given in others.items() if is_given), *(overrides or ())]
        if watches and (retry_failed or dry_run):
            raise ConfigError("--watch runs nothing: give it without --retry-failed and --dry-run")
        if watches and config is None:
            raise ConfigError("--watch needs --config NAME_OR_PATH: the sweep that runs elsewhere")
        if (config is None) == (not redraws):
            raise ConfigError("give --config NAME_OR_PATH to run a sweep, or --redraw SUMMARY to draw one again")
        if redraws and given:
            raise ConfigError(f"--redraw draws what a summary.json holds: leave out {', '.join(given)}")
        for summary in redraws or ():
            show(*redraw(summary), summary.parent)
        if config is not None:
            settings = read_config(SweepConfig, config, overrides or ())
            with stoppable():
                if watches:
                    raise typer.Exit(code_of(watch(settings, targets_of(settings), console)))
                raise typer.Exit(sweep(settings, retry_failed=retry_failed, only_check=dry_run))
    except (ValueError, OSError) as error:
        exit_explained(error)


def sweep(config: SweepConfig, *, retry_failed: bool, only_check: bool) -> int:
    """Run the sweep, write its report, and return the exit code: 1 when no cell at all is done."""
    targets = targets_of(config)
    check_ours(config.output)
    known = Results(config.output / RESULTS)
    check_unchanged(config, targets, known)  # or cells run with other settings would be reported as done
    if retry_failed:
        known.forget_failed()
    found = known.by_cell
    due = due_cells(config, found)
    for cell in due:
        check_cell(config, cell, targets[cell.arm, cell.axis_value])
    config, cards = with_cards(config, targets) if due else (config, [])
    wanted = [item for cell in due for item in targets[cell.arm, cell.axis_value].wanted_of_hub]
    if only_check:
        for cell in due:
            console.print(escape(cell.name), soft_wrap=True)
        console.print(f"{len(due)} cells due, {cells_left(config, found) - len(due)} to follow, {ended(found)}")
        show_sharing(config, targets)
        check_hub(wanted)
        check_heard()
        return 0
    check_writable(config.output, "output_dir")
    check_hub(wanted)
    sharing = show_sharing(config, targets)
    try:
        results, stop = run_sweep(
            config,
            targets,
            retry_failed=retry_failed,
            sharing=sharing,
            cards=cards,
            on_result=at_intervals(lambda results: write_report(config, results.by_cell)),
        )
        show(config, write_report(config, results.by_cell), config.output)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        exit_with_error(f"{error}\nMake space. The same command with --retry-failed continues.", 1)
    if "failed" in (how := ended(results.by_cell)):
        console.print(how)
    if stop.signum is not None:
        console.print("stopped as asked: run the same command to continue")
        return 128 + stop.signum
    return code_of(results.by_cell)


def with_cards(config: SweepConfig, targets: Targets) -> tuple[SweepConfig, list[str]]:
    """Return the sweep with `jobs` limited to what this machine has cards for, and the cards of each process; no cards
    on a machine without any. Prints a line if `jobs` was reduced."""
    cards = cards_here() if config.jobs > 1 else ()
    if not cards:
        return config, []
    count = COMMANDS[config.command].cards
    hands = dealt(cards, config.jobs, (count(target.settings) for target in targets.values()))
    if len(hands) < config.jobs:
        have = "1 card has" if len(cards) == 1 else f"{len(cards)} cards have"
        message = f"jobs is {config.jobs}, but {have} room for only {max(1, len(hands))} at a time"
        console.print(f"{message}; with `together` several runs share a card", soft_wrap=True)
    return config.model_copy(update={"jobs": max(1, len(hands))}), hands


def at_intervals(report: Callable[[Results], object]) -> Callable[[Results], None]:
    """`report`, but skipped if the last call was less than `REPORT_S` ago."""
    last = -math.inf

    def sparing(results: Results) -> None:
        nonlocal last
        if time.monotonic() >= last + REPORT_S:
            report(results)
            last = time.monotonic()

    return sparing


def ended(found: Found) -> str:
    """How many cells are done, and how many failed, which run again only if asked."""
    done = sum(result.status == "done" for result in found.values())
    failed = f", {len(found) - done} failed: --retry-failed runs them again"
    return f"{done} done{failed if done < len(found) else ''}"


def code_of(found: Found) -> int:
    return 0 if any(result.status == "done" for result in found.values()) else 1


def show_sharing(config: SweepConfig, targets: Targets) -> Sharing:
    """Print which cells run together, what that needs, and why others run alone. Raises `ConfigError` if it needs more
    memory than there is."""
    sharing = sharing_of(config, targets)
    for lines in room_lines(config, targets, sharing):
        for title, text in lines.items():
            console.print(escape(f"{title:<10}{text}"), soft_wrap=True)
    for line in sharing.why_apart:
        console.print(escape(line), soft_wrap=True)
    return sharing


def show(config: SweepConfig, analysis: Analysis, directory: Path) -> None:
    for rows in (best_rows(config, analysis), score_rows(config, analysis)):
        console.print()
        print_table(console_table(rows), console)
    console.print(f"\n{directory}: {TABLE}, {SUMMARY}, figures", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(app())
