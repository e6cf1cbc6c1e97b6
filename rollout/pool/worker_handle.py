"""A worker as the pool sees it: a Ray actor, its open requests, and how it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datafiles.text import first_line
from rollout.engine import NanError
from rollout.pool.dispatch import MOST_ITEMS
from rollout.pool.worker import PoolWorker
from rollout.types import AdapterRef
from rollout.work_items import WorkItem

# Longest time to fetch an answer that Ray reports as available.
FETCH_S = 5.0

# How long a worker may be without a place before the user is told what it waits for.
PLACE_S = 15.0

# Additional threads of a worker that samples several items side by side, for other requests.
MORE_THREADS = 4

KILLED = (
    "its process was killed, as a system short of memory does (fewer rollout.workers need less), or crashed, or its "
    "machine is gone"
)

Complaint = str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request to a worker, its deadline, and the function that takes the answer and says what is wrong with it."""

    handle: Any
    deadline: float
    accept: Callable[[Any], Complaint] = lambda _: None
    item: WorkItem | None = None
    """The item to sample; None for other requests."""
    begun: Any = None
    """Handle of a request that the worker handles just before the item: once it is answered, the item has begun."""


@dataclass(eq=False)
class WorkerHandle:
    """A worker. Besides sampling, it has at most one open request."""

    actor: Any
    where: Any
    """Handle of (node, process id, directory of its files), which is known before the engine has started."""
    call: Call | None = None
    """Its open request besides sampling."""
    samples: list[Call] = field(default_factory=list)
    """Open requests for the items it was given."""
    ready: bool = False
    heard: float = field(default_factory=time.monotonic)
    """When it last answered."""
    loaded: set[str] = field(default_factory=set)
    """Keys of the versions whose digests it has acknowledged."""
    told: bool = False
    """Whether the user knows that it waits for a place, or it did not wait for long."""
    node: str | None = None
    """The machine it is on, once known."""
    pid: int = 0
    files: Path = Path()

    @classmethod
    def placed(cls, cpus: int, gpus: int, *, together: bool) -> WorkerHandle:
        """Create an actor wherever the cluster has room, now or later. `together`: it samples items side by side."""
        threads = MOST_ITEMS + MORE_THREADS if together else 1
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": threads}
        remote: Any = ray.remote(**options)(PoolWorker)
        actor = remote.remote(cpus)
        return cls(actor, actor.__ray_call__.remote(_where))

    def find(self) -> str | None:
        """The machine it is on, if known by now."""
        if self.node is None and ray.wait([self.where], timeout=0)[0]:
            self.node, self.pid, self.files = answer_of(self.where)[0] or (None, 0, Path())
        return self.node

    def waits_untold(self) -> bool:
        """Whether it has had no place for `PLACE_S`; True only once, because the user is told then."""
        if self.told or time.monotonic() - self.heard < PLACE_S:
            return False
        self.told = True
        return self.find() is None

    def sample(self, item: WorkItem, deadline: float) -> Call:
        """Request an item's groups."""
        request, begun = item.request, self.actor.ping.remote()
        if item.before is None:
            handle = self.actor.generate.remote(item.prompts, request.sampling, request.adapter, item.seeds)
        else:
            handle = self.actor.extend.remote(item.before.groups, request.sampling, request.adapter, item.seeds)
        return Call(handle=handle, deadline=deadline, accept=item.take, item=item, begun=begun)

    def load(self, ref: AdapterRef, files: Any, deadline: float) -> Call:
        """Send it a version, which it must acknowledge with the digest."""
        return self._loading(self.actor.load_adapter.remote(ref, files), ref, deadline)

    def look(self, ref: AdapterRef, deadline: float, found: Callable[[Path | None], Complaint]) -> Call:
        """Ask it to look for a version's files on its machine."""
        return Call(handle=self.actor.look_for.remote(ref), deadline=deadline, accept=found)

    def load_from(self, path: Path, ref: AdapterRef, deadline: float) -> Call:
        """Ask it to load a version's files, which have been verified on its machine; see `load`."""
        return self._loading(self.actor.load_from.remote(replace(ref, path=path)), ref, deadline)

    def _loading(self, handle: Any, ref: AdapterRef, deadline: float) -> Call:
        def acknowledged(found: str) -> Complaint:
            if found != ref.sha256:
                return f"what it loaded as {ref.key} has digest {found[:12]}…, not {ref.sha256[:12]}…"
            self.loaded.add(ref.key)
            return None

        return Call(handle=handle, deadline=deadline, accept=acknowledged)

    @property
    def items(self) -> list[WorkItem]:
        """The items it was given to sample."""
        return [call.item for call in self.samples if call.item is not None]

    @property
    def calls(self) -> Iterator[Call]:
        """All open requests."""
        if self.call is not None:
            yield self.call
        yield from self.samples

    def answered(self, call: Call) -> None:
        if call is self.call:
            self.call = None
        else:
            self.samples.remove(call)
        self.heard = time.monotonic()

    def begun(self) -> list[WorkItem]:
        """The items that it has begun. A dead worker may have been given more, but never began them."""
        handles = {call.begun: call.item for call in self.samples if call.item is not None}
        there = ray.wait(list(handles), num_returns=len(handles), timeout=0)[0] if handles else []
        return [handles[handle] for handle in there if answer_of(handle)[1] is None]

    def end(self, *, hangs: bool = False) -> None:
        """Kill the worker. One that `hangs` may be a stopped process, which only SIGKILL ends, so that is sent too."""
        self.find()
        if hangs and self.node is not None:
            if self.node == ray.get_runtime_context().get_node_id():
                end_process(self.pid, self.files)
            else:
                there = NodeAffinitySchedulingStrategy(self.node, soft=False)
                ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_process).remote(
                    self.pid, self.files
                )
        ray.kill(self.actor)


def end_all(workers: Sequence[WorkerHandle], limit_s: float) -> None:
    """End all workers; those that are idle may exit by themselves within `limit_s`."""
    # A busy worker would not get the request before it is done.
    farewells = {worker.actor.close.remote(): worker for worker in workers if not any(worker.calls)}
    gone = ray.wait(list(farewells), num_returns=len(farewells), timeout=limit_s)[0] if farewells else []
    left = {farewells[handle] for handle in gone}
    for worker in workers:
        worker.end(hangs=worker not in left)


def answer_of(handle: Any) -> tuple[Any, Complaint]:
    """Return (what a call returned, None) or (None, why it returned nothing). Raises `NanError` where the model
    computes NaN: the next worker would, too."""
    try:
        return ray.get(handle, timeout=FETCH_S), None
    except RayTaskError as error:
        if isinstance(error.cause, NanError):
            raise NanError(str(error.cause)) from None
        return None, f"it failed: {error.cause!r}"
    except RayError as error:
        # If an actor died in its constructor, the cause comes last. Otherwise the first line says only that it died.
        if not isinstance(error, ActorDiedError):
            return None, f"it died or its answer was lost: {first_line(error)}"
        return None, f"it died: {str(error).splitlines()[-1] if error.actor_init_failed else KILLED}"


def _where(worker: PoolWorker) -> tuple[str, int, Path]:
    return ray.get_runtime_context().get_node_id(), os.getpid(), worker.scratch.path


def end_process(pid: int, files: Path) -> None:
    """Kill a Ray process on this machine and remove its files. A reused process id is not touched."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if "ray::" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace"):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(files, ignore_errors=True)
