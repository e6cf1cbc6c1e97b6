"""The machines of a cluster → how many workers they have room for, and in words where those are."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray

log = logging.getLogger(__name__)

NAMED = 8
"""Machines beyond which they are counted instead of named."""
LOOK_EVERY_S = 5.0
"""How often it is seen which machines have come or gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node that Ray counts as there, and all that it has, whoever uses it now."""

    id: str
    address: str
    cpus: float
    gpus: float
    store: int
    """Bytes of its object store."""

    def workers(self, cpus: int, gpus: int) -> int:
        """How many actors of so many cores and cards fit on it. None is split over two machines."""
        fits = [has // needs for has, needs in ((self.cpus, cpus), (self.gpus, gpus)) if needs]
        return int(min(fits, default=0))


def machines() -> list[Machine]:
    """Those that are there, as far as Ray knows."""
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
    """How many workers a pool should have: a number, or what the machines of now have room for."""

    fixed: int | None
    cpus: int
    gpus: int
    """What a worker takes, as `cpus`."""
    workers: int = field(init=False)
    _looked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.workers = self.fixed or 1

    def look_again(self) -> bool:
        """See `look`; False where that was a short while ago."""
        return time.monotonic() - self._looked > LOOK_EVERY_S and self.look()

    def look(self) -> bool:
        """Count anew; whether the number is another. Without room for any it is 1: that one waits for a machine."""
        first, self._looked = not self._looked, time.monotonic()
        if self.fixed is not None:
            return False
        before, self.workers = self.workers, max(1, sum(one.workers(self.cpus, self.gpus) for one in machines()))
        if before != self.workers and not first:
            log.warning("the cluster has room for %d sampling workers", self.workers)
        return before != self.workers


def placement_of(nodes: Sequence[str | None], addresses: Mapping[str, str], cards: int = 0) -> str:
    """Where workers are, for people: `nodes` has the machine of each, None where it has no place yet."""
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
