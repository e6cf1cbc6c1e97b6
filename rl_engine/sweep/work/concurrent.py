"""Cells that can share → one process in which they train side by side, and what it reports about each.

OUTPUT/together/<number>.log    the command and everything the process printed
OUTPUT/cells/<cell>/config.yaml the cell's settings; its log.txt has the cell's own lines
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafiles.settings import write_yaml
from datafiles.text import new_output
from rl_engine.config.file import RUN_CONFIG, CommandConfig, read_config
from rl_engine.run.board import BEGUN, DONE, FAILED, STATE
from rl_engine.sweep.cells import Cell, arguments_of
from rl_engine.sweep.config import COMMANDS, SweepConfig
from rl_engine.sweep.results import Result
from rl_engine.sweep.sharing import Targets
from rl_engine.sweep.work.processes import Process, start_process
from rl_engine.sweep.work.runs import CellRun, begin, note_command, result_of, tail
from rollout.files.durable import write_synced

LOGS = "together"


@dataclass(kw_only=True)
class Together:
    """A process that runs several cells, some of which wait for a slot."""

    waiting: dict[str, CellRun]
    """Name of a cell → its run, for cells that have not started."""
    process: Process
    log: Path
    at_once: int
    """How many run at a time."""
    over: bool = False
    refused: str = ""
    """Why the process ended before any cell had started, without having been asked to."""
    suspects: tuple[Cell, ...] = ()
    """After it has ended: cells that may be the reason why it ended early."""
    overdue: tuple[Cell, ...] = ()
    """Cells that were past the time limit when the process was asked to stop."""
    _begun: dict[str, CellRun] = field(default_factory=dict, init=False)
    """Cells that are running."""
    _read: int = field(default=0, init=False)
    """Bytes of the log read so far."""

    @property
    def at_work(self) -> list[Cell]:
        """All unfinished cells, including those that wait for a slot: no other process may take them."""
        return [run.cell for run in (*self._begun.values(), *self.waiting.values())] if not self.over else []

    def news(self, config: SweepConfig) -> list[Result]:
        """The results of the cells that have ended since the last call."""
        code = self.process.returncode  # polled before reading the log, so that the log of an ended process is complete
        new = new_output(self.log, self._read, ended=code is not None)
        self._read += len(new)
        lines = new.decode(errors="replace").splitlines()
        results = [result for line in lines if (result := self._told(line, config))]
        if code is None:
            self._end_overdue(config)
        else:
            self.over = True
            if self.process.asked_to_stop is None:
                self._suspect(code)
        return results

    def _told(self, line: str, config: SweepConfig) -> Result | None:
        """Copy a line into its cell's own log; return the cell's result if the line says that it has ended."""
        name, _, text = line.partition("  ")
        run = self._begun.get(name) or self.waiting.get(name)
        if run is None:
            return None
        if not text.startswith(STATE):
            with run.log.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
        if text == f"{STATE}{BEGUN}" and name in self.waiting:
            run.started = time.monotonic()
            self._begun[name] = self.waiting.pop(name)
        # A cell reported as failed before it started is not at fault (the sampler was gone), so it gets no result.
        elif text in (f"{STATE}{DONE}", f"{STATE}{FAILED}") and name in self._begun:
            del self._begun[name]
            return result_of(run, config, 0 if text == f"{STATE}{DONE}" else 1)
        return None

    def _end_overdue(self, config: SweepConfig) -> None:
        """If a cell has exceeded its time limit, scaled by its share of the process, make all of them save and exit.
        Whether this cell hangs, or another one whose turn it waits for, shows when it continues alone."""
        if config.time_limit_s is None or self.process.asked_to_stop is not None:
            return
        limit_s = config.time_limit_s * self.at_once
        late = [run.cell for run in self._begun.values() if run.seconds > limit_s]
        if late:
            self.overdue = tuple(late)
            self.process.stop()

    def _suspect(self, code: int) -> None:
        """Note the suspects after the process ended by itself before all of its cells did."""
        runs = self._begun or self.waiting
        self.suspects = tuple(run.cell for run in runs.values())
        if code >= 0 and not self._begun and self.waiting:
            self.refused = f"exit code {code}: {tail(self.log)}"


def start_together(
    config: SweepConfig, cells: Sequence[Cell], targets: Targets, lock: int, cards: str | None
) -> Together:
    """Run the cells in one process, each resuming from where an earlier attempt left it."""
    command = COMMANDS[config.command]
    runs = {cell.name: begin(config, cell, targets[cell.arm, cell.axis_value]) for cell in cells}
    files = []
    for run in runs.values():
        files += ["--config", str(run.directory / RUN_CONFIG)]
        write_synced(run.directory / RUN_CONFIG, settings_file(settings_of(config, run)))
    line = [sys.executable, "-m", command.module, *files, "--together", str(config.together), "--resume"]
    (config.output / LOGS).mkdir(exist_ok=True)
    numbers = (config.output / LOGS / f"{number:03}.log" for number in itertools.count(1))
    log = next(path for path in numbers if not path.exists())
    for path in (log, *(run.log for run in runs.values())):
        note_command(path, line)
    at_once = min(config.together, len(cells))
    process = start_process(line, log, config.jobs, lock, cards)
    return Together(waiting=runs, process=process, log=log, at_once=at_once)


def settings_of(config: SweepConfig, run: CellRun) -> CommandConfig:
    own = [*arguments_of(run.cell.overrides), f"output_dir={json.dumps(str(run.run))}"]
    return read_config(COMMANDS[config.command].schema, config.base, own, place="the sweep's settings")


def settings_file(settings: CommandConfig) -> str:
    """A YAML file with only the settings that were given: the run itself derives the rest."""
    values: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    return write_yaml(values)
