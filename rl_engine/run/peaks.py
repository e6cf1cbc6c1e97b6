"""This process and its device → memory: what is there, and the most that each phase of a step has held."""

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
"""Written into clear_refs, sets the kernel's high-water mark to what is resident now (proc(5))."""


def _from_status(field_name: str) -> float:
    """A line of /proc/self/status in GiB: `VmHWM` is the high-water mark, `VmRSS` what is resident now."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024 / GIB
    raise OSError(f"{STATUS} has no {field_name}")


def _reset_peak() -> bool:
    """Whether the kernel's high-water mark could be set back."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="utf-8")
    except OSError:
        return False
    return True


@dataclass
class PhasePeaks:
    """The peak memory of each phase, in GiB: of this process on the CPU; on CUDA all that is taken of the card.

    On the CPU the kernel keeps the mark, so nothing is missed between two looks. Where it cannot be set back, the
    figure is what is resident at the end of the phase, and a warning says so once.

    On CUDA torch keeps a mark, of what its allocator has reserved, and counts in it the sampler's memory that sleep has
    given back. So the figure is what the driver says is taken at the end of the phase, and what the allocator had
    reserved beyond its present reserve at the peak: what sleeps is in both of these and falls out.
    """

    device: torch.device
    gib: dict[str, float] = field(default_factory=dict, init=False)
    exact: bool = field(default=True, init=False)

    @contextlib.contextmanager
    def peak_gib(self, phase: str) -> Iterator[None]:
        """Measure the block as that phase; a phase entered again is measured anew. One that fails is not measured: of
        a card that has failed the driver says nothing but that, in the place of how."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not _reset_peak():
            self._cannot_reset()
        yield
        self.gib[phase] = self._now()

    def metrics(self) -> dict[str, float]:
        """`memory/rollout_gib`, `memory/learn_gib`, `memory/sync_gib`: of the phases measured since the last call."""
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
    """What a rank may use, in GiB."""

    device_gib: float
    host_gib: float
    """Memory of the machine; on the CPU the same as `device_gib`."""


def available(ranks: Ranks) -> Available:
    """What this rank may use. What it holds already of the machine's memory counts, since the estimate counts it too.

    Of a card what is free counts: it is asked before anything is loaded, and what torch has reserved there may be a
    sleeping sampler's, which holds nothing.
    """
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
    room = psutil.virtual_memory().available
    limit = memory_room()
    host = min(room, room if limit is None else limit) / neighbours / GIB + psutil.Process().memory_info().rss / GIB
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return Available(device_gib=free / GIB, host_gib=host)
    return Available(device_gib=host, host_gib=host)
