"""The machines of a cluster → how many workers fit on them, and a description of where the workers are."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray._private import worker
from ray._private.state import available_resources_per_node
from ray.autoscaler.v2.sdk import get_cluster_resource_state

from rollout.engine import PoolError

log = logging.getLogger(__name__)

NAMED = 8
"""With more machines than this they are counted instead of named."""
LOOK_EVERY_S = 5.0
"""How often to check which machines have come or gone."""
ANSWERS_S = 10.0
"""How long the object store may take to accept a connection."""
GONE = (
    "Ray no longer runs on this machine: it was stopped, or killed for lack of memory, or the cluster took the machine "
    "for lost"
)


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


def check_here() -> None:
    """Raises `PoolError` if Ray's processes on this machine are gone. Then no worker can be reached or started, and Ray
    ends a process that puts something into the object store."""
    with socket.socket(socket.AF_UNIX) as store:
        store.settimeout(ANSWERS_S)
        try:
            store.connect(worker._global_node.plasma_store_socket_name)
        except OSError as error:
            raise PoolError(GONE) from error


def machines() -> list[Machine]:
    """The machines that Ray considers alive. Raises `PoolError` if this one is not among them."""
    check_here()
    found = [
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
    here = ray.get_runtime_context().get_node_id()
    if all(machine.id != here for machine in found):
        raise PoolError(GONE)
    return found


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
        """Count again, and return whether the number has changed. At least 1: a worker without room waits for it.
        Raises `PoolError` as `machines` does, also if the number is fixed."""
        first, self._looked, found = not self._looked, time.monotonic(), machines()
        if self.fixed is not None:
            return False
        before, self.workers = self.workers, max(1, sum(one.workers(self.cpus, self.gpus) for one in found))
        if before != self.workers and not first:
            log.warning("the cluster has room for %d sampling workers", self.workers)
        return before != self.workers

    def why_no_place(self) -> str:
        """What is said of a worker that was given up without a place."""
        if not self.waits_for_place():
            return "its process did not start in time"
        why = self.lacks()
        return "it found no place in the cluster in time" + (f": {why}" if why else "")

    def tell(self, waiting: int, limit_s: float) -> None:
        """Say what so many workers wait for, unless some machine has room for them, or they have a place and their
        processes are only slow to start."""
        if self.waits_for_place() and (why := self.lacks()) is not None:
            told = "%d of %d sampling workers wait for a place, at most %.0f s (rollout.start_timeout_s): %s"
            log.warning(told, waiting, self.workers, limit_s, why)

    def waits_for_place(self) -> bool:
        """Whether Ray has found no machine for some worker. What is free does not tell: a worker whose process is being
        started has its cores already."""
        asked = get_cluster_resource_state(worker.global_worker.gcs_client).pending_resource_requests
        bundles = [one.request.resources_bundle for one in asked if one.count]
        return any((each.get("CPU", 0), each.get("GPU", 0)) == (self.cpus, self.gpus) for each in bundles)

    def lacks(self) -> str | None:
        """Why a worker finds no place now, with the way out; None if some machine has room for it."""
        free = [(has.get("CPU", 0), has.get("GPU", 0)) for has in available_resources_per_node().values()]
        if any(cpus >= self.cpus and gpus >= self.gpus for cpus, gpus in free):
            return None
        every, cores = machines(), sum(cpus for cpus, _ in free)
        needed, there = _count(self.cpus, "core"), f"{cores:g} of {sum(one.cpus for one in every):g} cores"
        if self.gpus:
            needed += f" and {_count(self.gpus, 'card')}"
            there += f" and {sum(gpus for _, gpus in free):g} of {sum(one.gpus for one in every):g} cards"
        return (
            f"each takes {needed} on one machine, and the cluster has {there} free: end what else runs there, start "
            "more machines, or lower rollout.workers or rollout.cpus_per_worker"
        )


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
