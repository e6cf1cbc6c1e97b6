"""Lost workers → how many things went wrong, how long to wait before the next start, and which prompts are to blame.

A machine that goes takes all its workers with it: that is one incident, not one a worker. Prompts that end whoever
samples them are told from prompts that were unlucky by the number of incidents, and of machines, they were in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from rollout.work_items import WorkItem

TOGETHER_S = 10.0
"""Losses on one machine within so long of each other are one incident."""
WINDOW_S = 600.0
"""Incidents are forgotten after so long."""
LONGEST_PAUSE_S = 60.0
INCIDENTS_TO_BLAME = 3
"""A work item that was being sampled in so many incidents is at fault itself."""


@dataclass(eq=False)
class Incident:
    """Losses that belong together."""

    node: str | None
    """Machine; None where a worker was lost before it had one."""
    at: float
    """When the last was lost."""
    workers: int = 1


@dataclass(eq=False)
class Incidents:
    """What went wrong lately. `clock` is in seconds."""

    clock: Callable[[], float] = time.monotonic
    _recent: list[Incident] = field(default_factory=list, init=False)
    _in_a_row: dict[Incident, str] = field(default_factory=dict, init=False)
    """Since anything was sampled, with the first cause since then."""
    _charged: dict[WorkItem, list[Incident]] = field(default_factory=dict, init=False)

    def lost(self, node: str | None, cause: str, begun: Collection[WorkItem] = ()) -> Incident:
        """Count a worker that was lost while it sampled `begun`.

        An item is in an incident once: it was given out again when it is lost the second time, so that is another.
        """
        now, earlier = self.clock(), [one for item in begun for one in self._charged.get(item, [])]
        self._recent = [incident for incident in self._recent if now - incident.at < WINDOW_S]
        together = [one for one in self._recent if one.node == node and now - one.at < TOGETHER_S]
        found = next((one for one in reversed(together) if one not in earlier), None)
        if found is None:
            found = Incident(node, now)
            self._recent.append(found)
        else:
            found.at = now
            found.workers += 1
        self._in_a_row.setdefault(found, cause)
        for item in begun:
            self._charged[item] = [*self._charged.get(item, []), found]
        return found

    def suspects(self, item: WorkItem) -> bool:
        """Whether one more incident would blame the item: sampled alone, it will have been its own. Machines go
        without anybody's fault, so that a first loss makes no suspects."""
        return len(self._charged.get(item, [])) >= INCIDENTS_TO_BLAME - 1

    def sampled(self, item: WorkItem) -> None:
        """An item has come back: the pool works, and the item is blameless."""
        self._in_a_row.clear()
        self._charged.pop(item, None)

    @property
    def in_a_row(self) -> list[str]:
        """The cause of each incident since anything was sampled, the first one first."""
        return [cause for incident, cause in self._in_a_row.items() if self.clock() - incident.at < WINDOW_S]

    def pause_s(self) -> float:
        """How long to wait before workers start again: nothing after a first incident, then 1, 3, 7, … seconds."""
        now = self.clock()
        recent = sum(now - incident.at < WINDOW_S for incident in self._recent)
        return float(min(LONGEST_PAUSE_S, 2 ** max(recent - 1, 0) - 1))

    def blames(self, item: WorkItem, nodes: Collection[str]) -> list[Incident]:
        """The incidents that an item was in, where they suffice to call it the cause; else none.

        One machine may be what is wrong: the incidents are of as many machines as `nodes`, those of the cluster, allow.
        """
        found = self._charged.get(item, [])
        machines = {incident.node for incident in found}
        enough = len(found) >= INCIDENTS_TO_BLAME and len(machines) >= min(INCIDENTS_TO_BLAME, len(nodes))
        return found if enough else []
