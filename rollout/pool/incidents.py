"""Lost workers → how many incidents there were, how long to wait before restarting, and which prompts are to blame.

A machine that goes down takes all its workers with it, which is one incident, not one per worker. Prompts that kill
their workers are told apart from unlucky ones by the number of incidents, and of machines, that they were involved in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from rollout.work_items import WorkItem

TOGETHER_S = 10.0
"""Losses on one machine within this time of each other are one incident."""
WINDOW_S = 600.0
"""Incidents are forgotten after this time."""
LONGEST_PAUSE_S = 60.0
INCIDENTS_TO_BLAME = 3
"""A work item that was being sampled in this many incidents is itself at fault."""


@dataclass(eq=False)
class Incident:
    """Losses that count as one."""

    node: str | None
    """The machine; None if the worker was lost before it was placed."""
    at: float
    """When the last of the workers was lost."""
    workers: int = 1


@dataclass(eq=False)
class Incidents:
    """Recent incidents. `clock` is in seconds."""

    clock: Callable[[], float] = time.monotonic
    _recent: list[Incident] = field(default_factory=list, init=False)
    _in_a_row: dict[Incident, str] = field(default_factory=dict, init=False)
    """Incidents since anything was last sampled → the cause of their first loss."""
    _charged: dict[WorkItem, list[Incident]] = field(default_factory=dict, init=False)

    def lost(self, node: str | None, cause: str, begun: Collection[WorkItem] = ()) -> Incident:
        """Count a worker that was lost while it was sampling `begun`.

        An item is involved in an incident at most once: if it is lost again, it had been handed out again, so that is
        another incident.
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
        """Whether one more incident would put the blame on the item. It is then sampled alone, so that an incident is
        its own. Machines also go down without anyone's fault, so a first loss makes no suspects."""
        return len(self._charged.get(item, [])) >= INCIDENTS_TO_BLAME - 1

    def sampled(self, item: WorkItem) -> None:
        """Note that an item was sampled: the pool works, and the item is not at fault."""
        self._in_a_row.clear()
        self._charged.pop(item, None)

    @property
    def in_a_row(self) -> list[str]:
        """The causes of the incidents since anything was last sampled, oldest first."""
        return [cause for incident, cause in self._in_a_row.items() if self.clock() - incident.at < WINDOW_S]

    def pause_s(self) -> float:
        """Seconds to wait before workers are restarted: 0 after the first incident, then 1, 3, 7, …"""
        now = self.clock()
        recent = sum(now - incident.at < WINDOW_S for incident in self._recent)
        return float(min(LONGEST_PAUSE_S, 2 ** max(recent - 1, 0) - 1))

    def blames(self, item: WorkItem, nodes: Collection[str]) -> list[Incident]:
        """The incidents that an item was involved in, if they suffice to call it the cause; otherwise none.

        A single machine may be what is broken, so the incidents must be on several machines, as far as the cluster's
        `nodes` allow.
        """
        found = self._charged.get(item, [])
        machines = {incident.node for incident in found}
        enough = len(found) >= INCIDENTS_TO_BLAME and len(machines) >= min(INCIDENTS_TO_BLAME, len(nodes))
        return found if enough else []
