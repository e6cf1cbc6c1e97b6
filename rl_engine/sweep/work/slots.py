"""Due cells → the processes that run them: up to `jobs`, each with one cell or several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rl_engine.sweep.cells import Cell
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import reason_of
from rl_engine.sweep.results import Result
from rl_engine.sweep.sharing import Sharing, Targets
from rl_engine.sweep.work.concurrent import Together, start_together
from rl_engine.sweep.work.runs import Alone, start_alone

MOST_DEATHS = 2
"""A cell whose shared process died this often continues alone, where it can take down no other cell."""


@dataclass
class WorkSlots:
    config: SweepConfig
    targets: Targets
    sharing: Sharing
    lock: int
    say: Callable[[str], None]
    cards: Sequence[str] = ()
    """The cards of each process, one entry per job; if empty, processes see the same cards as the sweep."""
    at_work: list[Alone | Together] = field(default_factory=list, init=False)
    _alone: set[str] = field(default_factory=set, init=False)
    """Names of cells that must run alone from now on."""
    _deaths: Counter[str] = field(default_factory=Counter, init=False)
    """How often a cell was running when its shared process died."""

    def fill(self, due: Sequence[Cell]) -> None:
        """Start cells in order until `jobs` processes are running."""
        left = list(due)
        while left and len(self.at_work) < self.config.jobs:
            cells = self._next(left)
            left = [cell for cell in left if cell not in cells]
            free = self._free_cards()
            if len(cells) == 1:
                target = self.targets[cells[0].arm, cells[0].axis_value]
                self.at_work.append(start_alone(self.config, cells[0], target, self.lock, free))
            else:
                self.at_work.append(start_together(self.config, cells, self.targets, self.lock, free))

    def _free_cards(self) -> str | None:
        taken = {work.process.cards for work in self.at_work} if self.cards else ()
        return next((one for one in self.cards if one not in taken), None)

    def _next(self, due: Sequence[Cell]) -> list[Cell]:
        """The first cell, and others that can share its process: as many as give every process the same number of
        unfinished cells, but at least `together`. They are picked evenly from the whole group, because neighbours
        belong to one arm and arms differ in cost."""
        group = self._group(due[0])
        if group is None:
            return [due[0]]
        cells = [cell for cell in due if self._group(cell) == group]
        unfinished = len(due) + sum(len(work.at_work) for work in self.at_work)
        share = max(math.ceil(unfinished / self.config.jobs), self.config.together)
        count = min(share, len(cells))
        return [cells[index * len(cells) // count] for index in range(count)]

    def _group(self, cell: Cell) -> int | None:
        return None if cell.name in self._alone else self.sharing.group_of((cell.arm, cell.axis_value))

    def news(self) -> list[Result]:
        """Results of the cells that have ended since the last call."""
        results = [result for work in self.at_work for result in work.news(self.config)]
        for work in self.at_work:
            if work.over and isinstance(work, Together):
                self._learn_from(work)
        self.at_work = [work for work in self.at_work if not work.over]
        return results

    def _learn_from(self, ended: Together) -> None:
        """Make suspect cells of an ended shared process run alone, which shows which of them is at fault."""
        if ended.overdue:
            self._part(ended.overdue, "it passed the time limit while sharing a process")
        if ended.refused:
            self._part(ended.suspects, f"they could not begin together: {reason_of(ended.refused)} ({ended.log})")
        elif ended.suspects:
            self._deaths.update(cell.name for cell in ended.suspects)
            names = ", ".join(cell.name for cell in ended.suspects)
            self.say(f"a process shared by several cells died ({ended.log}) while running {names}")
            often = [cell for cell in ended.suspects if self._deaths[cell.name] >= MOST_DEATHS]
            self._part(often, "its shared process died twice")

    def _part(self, cells: Sequence[Cell], why: str) -> None:
        self._alone.update(cell.name for cell in cells)
        for cell in cells:
            self.say(f"{cell.name} continues alone: {why}")
