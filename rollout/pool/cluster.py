"""The machines of a cluster → how many workers fit on them, and a description of where the workers are."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray

log = logging.getLogger(__name__)

NAMED = 8
"""With more machines than this they are counted instead of named."""
LOOK_EVERY_S = 5.0
"""How often to check which machines have come or gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node that Ray considers alive, with its total resources, whether in use or not."""

    id: str
    address: str
    cpus: float
    gpus: float
    store: int
    """Bytes of its object store."""

    def workers(self, cpus: int, gpus: int) -> int:
        """How many actors with this many cores and cards fit on it. An actor never spans two machines."""
        fits = [has // needs for has, needs in ((self.cpus, cpus), (self.gpus, gpus)) if needs]
        return int(min(fits, default=0))


def machines() -> list[Machine]:
    """The machines that Ray considers alive."""
    return [
        Machine(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0),
            gpus=node["Resources"].get("GPU", 0),
            store=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass
class Size:
    """How many workers a pool should have: a fixed number, or as many as fit on the current machines."""

    fixed: int | None
    cpus: int
    gpus: int
    """Cards per worker; `cpus` are its cores."""
    workers: int = field(init=False)
    _looked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.workers = self.fixed or 1

    def look_again(self) -> bool:
        """Like `look`, but at most every `LOOK_EVERY_S`; False in between."""
        return time.monotonic() - self._looked > LOOK_EVERY_S and self.look()

    def look(self) -> bool:
        """Count again, and return whether the number has changed. At least 1: a worker without room waits for it."""
        first, self._looked = not self._looked, time.monotonic()
        if self.fixed is not None:
            return False
        before, self.workers = self.workers, max(1, sum(one.workers(self.cpus, self.gpus) for one in machines()))
        if before != self.workers and not first:
            log.warning("the cluster has room for %d sampling workers", self.workers)
        return before != self.workers


def placement_of(nodes: Sequence[str | None], addresses: Mapping[str, str], cards: int = 0) -> str:
    """Describe where the workers are. `nodes` has the machine of each worker, None if it has not been placed yet."""
    counts = Counter(node for node in nodes if node is not None)
    each = f" of {cards} cards" if cards > 1 else ""
    text = f"{_count(sum(counts.values()), 'worker')}{each} on {_count(len(counts), 'machine')}"
    if len(counts) > NAMED:
        least, most = min(counts.values()), max(counts.values())
        text += f", {least} on each" if least == most else f", {least} to {most} on each"
    elif counts:
        names = sorted((addresses.get(node, "one that is gone"), count) for node, count in counts.items())
        text += ": " + ", ".join(f"{count} on {name}" for name, count in names)
    unplaced = len(nodes) - sum(counts.values())
    return text + (f"; {unplaced:,} without a place yet" if unplaced else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
