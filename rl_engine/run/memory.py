"""This process and its device → memory: the amount available, and the peak of each phase of a step."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from evals.launch.limits import memory_room
from rl_engine.learner.ranks import Ranks

GIB = 1024**3
CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"
"""Written to clear_refs, this resets the kernel's high-water mark to the current resident size (proc(5))."""


def _from_status(field_name: str) -> float:
    """A field of /proc/self/status in GiB: `VmHWM` is the high-water mark, `VmRSS` the current resident size."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError(f"{STATUS} has no {field_name}")


def _reset_peak() -> bool:
    """Reset the kernel's high-water mark; returns whether that worked."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="utf-8")
    except OSError:
        return False
    return True


@dataclass
class PhasePeaks:
    """The peak memory of each phase, in GiB: of this process on the CPU; on CUDA everything allocated on the card.

    On the CPU the kernel tracks the peak, so no spike is missed. If its mark cannot be reset, the value is the resident
    size at the end of the phase, and a warning is logged once.

    On CUDA torch tracks the peak of its allocator's reserved memory, which still includes sampler memory released by
    sleep. The value is therefore the memory in use at the end of the phase according to the driver, plus the difference
    between the allocator's peak and current reserve: sleeping memory is in both of these and cancels.
    """

    device: torch.device
    gib: dict[str, float] = field(default_factory=dict, init=False)
    exact: bool = field(default=True, init=False)

    @contextlib.contextmanager
    def peak_gib(self, phase: str) -> Iterator[None]:
        """Measure the block as this phase; entering a phase again starts a new measurement. A phase that fails is not
        measured: querying a failed card would raise another error and hide the first."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not _reset_peak():
            self._cannot_reset()
        yield
        self.gib[phase] = self._now()

    def metrics(self) -> dict[str, float]:
        """`memory/rollout_gib`, `memory/learn_gib`, `memory/sync_gib`, for phases measured since the last call."""
        measured = {f"memory/{phase}_gib": gib for phase, gib in self.gib.items()}
        self.gib = {}
        return measured

    def _now(self) -> float:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            given_back = torch.cuda.max_memory_reserved(self.device) - torch.cuda.memory_reserved(self.device)
            return (total - free + given_back) / GIB
        return _from_status("VmHWM" if self.exact else "VmRSS")

    def _cannot_reset(self) -> None:
        if self.exact:
            self.exact = False
            logging.getLogger(__name__).warning(
                f"{CLEAR_REFS} is not writable, so memory/… is the memory at the end of a phase, not its peak"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """Memory that a rank may use, in GiB."""

    device_gib: float
    host_gib: float
    """Host memory; on the CPU the same as `device_gib`."""


def available(ranks: Ranks) -> Available:
    """The memory that this rank may use, including the host memory it already holds, which the estimate includes too.

    For a card it is the free memory: it is queried before anything is loaded, and what torch has reserved may belong to
    a sleeping sampler, which occupies nothing.
    """
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
    room = psutil.virtual_memory().available
    limit = memory_room()
    host = min(room, room if limit is None else limit) / neighbours / GIB + psutil.Process().memory_info().rss / GIB
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return Available(device_gib=free / GIB, host_gib=host)
    return Available(device_gib=host, host_gib=host)
