"""Due cells → results, several at a time, until none is left or a stop is requested."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from datafiles.text import read_report
from rl_engine.config.file import ConfigError
from rl_engine.run.locks import locks_on_one_machine
from rl_engine.run.output import holds_run, refuse_place, refuse_unmarked
from rl_engine.run.records import read_metrics
from rl_engine.sweep.analysis import cells_left, due_cells
from rl_engine.sweep.cells import arms_of, cell_of, refuse_idle, target_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.progress import SweepProgress
from rl_engine.sweep.report import SUMMARY, TABLE
from rl_engine.sweep.results import RESULTS, Results, measured
from rl_engine.sweep.sharing import Sharing, Targets
from rl_engine.sweep.work.concurrent import LOGS
from rl_engine.sweep.work.runs import CELL, sole_user
from rl_engine.sweep.work.slots import WorkSlots
from rollout.files.durable import write_synced
from rollout.files.ownership import MARKER
from rollout.stopping import ECHO_S, stops_handled

POLL_S = 0.1
WRITTEN = ("cells", LOGS, RESULTS, TABLE, SUMMARY)
"""Names that a sweep writes into its directory, besides its figures."""
ALONE = Sharing()


@dataclass
class Stop:
    """Whether the sweep was asked to stop, and by which signal. A second request, unless it is an echo of the first,
    kills the runs at once."""

    signum: int | None = None
    at_once: bool = False
    _asked: float = field(default=0.0, init=False)
    """Monotonic seconds."""

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._asked = number, time.monotonic()
        elif time.monotonic() - self._asked > ECHO_S:
            self.at_once = True


def targets_of(config: SweepConfig) -> Targets:
    """Point → the target of its cells. Raises `ConfigError` for settings that are invalid or have no effect."""
    refuse_idle(config)
    return {(arm.name, value): target_of(config, arm, value) for arm in arms_of(config) for value in arm.axis_values}


def run_sweep(
    config: SweepConfig,
    targets: Targets,
    *,
    retry_failed: bool,
    sharing: Sharing = ALONE,
    cards: Sequence[str] = (),
    on_result: Callable[[Results], object] = lambda results: None,
) -> tuple[Results, Stop]:
    """Run the cells that have no result yet; `on_result` is called after each new result. `cards`: see `WorkSlots`.
    Raises `ConfigError` when `output_dir` holds runs with other settings."""
    check_ours(config.output)
    stop = Stop()
    with sole_user(config.output) as lock, stops_handled(stop.note):
        results = Results(config.output / RESULTS)
        write_synced(config.output / MARKER, "Written by a sweep of rl_engine.\n")
        check_unchanged(config, targets, results)
        remeasure(config, targets, results)
        if retry_failed:
            results.forget_failed()
        results.write()
        progress = SweepProgress(config=config, targets=targets)
        if message := locks_on_one_machine(config.output):
            progress.note(f"warning: {message}")
        try:
            slots = WorkSlots(config, targets, sharing, lock, progress.note, cards)
            run_cells(slots, results, stop, progress, on_result)
        finally:
            progress.close()
    return results, stop


def run_cells(
    slots: WorkSlots, results: Results, stop: Stop, progress: SweepProgress, on_result: Callable[[Results], object]
) -> None:
    """Start cells and record results until nothing is due or running; after a stop request, until nothing is
    running."""
    config = slots.config
    due = due_cells(config, results.by_cell)
    while True:
        if stop.signum is None:
            taken = {cell.name for work in slots.at_work for cell in work.at_work}
            slots.fill([cell for cell in due if cell.name not in taken])
        else:
            for work in slots.at_work:
                work.process.kill() if stop.at_once else work.process.stop()
        if not slots.at_work:
            return
        time.sleep(POLL_S)
        progress.running(results.by_cell)
        for result in slots.news():
            # A run that was asked to stop has no result: the next sweep resumes it.
            if stop.signum is None or result.status == "done":
                results.add(result)
                # Computed only here: in every poll, it would read the configuration ten times a second.
                due = due_cells(config, results.by_cell)
                progress.result(result, cells_left(config, results.by_cell))
                on_result(results)


def check_ours(output: Path) -> None:
    """Raises `ConfigError` if the directory contains names that a sweep writes but is not known to be a sweep's."""
    refuse_place(output)
    if holds_run(output):
        raise ConfigError(f"output_dir: {output} holds a run: give the sweep another output_dir")
    # Older sweeps have no marker, but readable results identify them.
    if not Results(output / RESULTS).by_cell:
        refuse_unmarked(output, WRITTEN, "a sweep")


def check_unchanged(config: SweepConfig, targets: Targets, results: Results) -> None:
    """Raises `ConfigError` when a cell was run, or started, with settings other than its current ones."""
    changed = []
    for arm in arms_of(config):
        for value, seed in itertools.product(arm.axis_values, (*config.seeds, *config.confirm_seeds)):
            name = cell_of(config, arm, value, seed).name
            begun = config.output / "cells" / name / CELL
            if name in results.by_cell:
                known = results.by_cell[name].config_hash
            elif begun.is_file():
                known = _begun_with(begun)
            else:
                continue
            if known != targets[arm.name, value].config_hash:
                changed.append(name)
    if changed:
        raise ConfigError(
            f"output_dir: {config.output} holds {len(changed)} cells that were run with other settings, the first of "
            f"them {changed[0]}: give another output_dir"
        )


def _begun_with(begun: Path) -> str:
    """Digest of the settings that a cell was started with."""
    try:
        return str(read_report(begun)["config_hash"])
    except (KeyError, TypeError, ValueError) as error:
        remedy = f"remove {begun.parent} to run the cell again"
        raise ConfigError(f"output_dir: {begun} does not record the settings of its cell: {remedy}") from error


def remeasure(config: SweepConfig, targets: Targets, results: Results) -> None:
    """Recompute scores and curves for the current configuration, for runs whose metrics are those of the whole run. If
    they are gone or cut short, or the run was continued beyond the sweep's steps, the result stays as it was
    recorded."""
    for name, result in results.by_cell.items():
        run, target = config.output / "cells" / name / "run", targets.get((result.arm, result.axis_value))
        lines = read_metrics(run) if result.status == "done" else []
        if lines and (target is None or lines[-1]["step"] == (target.steps or lines[-1]["step"])):
            results.by_cell[name] = measured(result, run, config.score, config.metrics)
