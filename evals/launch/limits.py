"""Control groups → the processors and memory that a container's or job's limits leave this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIPS = Path("/proc/self/cgroup")
"""One line per hierarchy, `number:controllers:path`; version 2 has no controllers."""


def usable_cores(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int:
    """How many threads can each have a processor: the number of processors that this process may run on, or fewer if a
    quota limits their time (`docker run --cpus`, a pod's limit), which no library considers. With more threads than
    that, each waits for others that have no processor.
    """
    shares = [share for group, unified in _groups("cpu", root, memberships) if (share := _share(group, unified))]
    return max(1, int(min([len(os.sched_getaffinity(0)), *shares])))


def thread_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """OMP_NUM_THREADS, if libraries would otherwise count processors that this process cannot use: its share among the
    launcher's processes on this machine. Empty if the user has set it."""
    cores = usable_cores()
    if environment.get("OMP_NUM_THREADS") or cores == len(os.sched_getaffinity(0)):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1"))))}


def memory_room(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int | None:
    """The bytes that this process may still use under its control groups' limits; None without a limit."""
    rooms = (
        _room(group / "memory.max", group / "memory.current", group / "memory.stat")
        if unified
        else _room(group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", group / "memory.stat")
        for group, unified in _groups("memory", root, memberships)
    )
    return min((room for room in rooms if room is not None), default=None)


def _groups(controller: str, root: Path, memberships: Path) -> Iterator[tuple[Path, bool]]:
    """The directories of the control groups that may limit this process, up to the root, each with whether it is of
    version 2."""
    if not memberships.is_file():
        return
    for line in memberships.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        inner = top / path.lstrip("/")
        yield from ((group, not controllers) for group in (inner, *inner.parents) if group.is_relative_to(top))


def _share(group: Path, unified: bool) -> float | None:
    """The group's CPU quota as a number of processors; None without a limit."""
    files = (group / "cpu.max",) if unified else (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
    if not all(file.is_file() for file in files):
        return None
    quota, period = " ".join(file.read_text(encoding="utf-8") for file in files).split()
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _room(limit: Path, used: Path, stat: Path) -> int | None:
    """The unused bytes below the limit; file pages that the kernel can drop count as unused."""
    if not (limit.is_file() and used.is_file()):
        return None
    text = limit.read_text(encoding="utf-8").strip()
    if text == "max":
        return None
    statistics = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines()) if stat.is_file() else {}
    droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(0, int(text) - int(used.read_text(encoding="utf-8")) + droppable)
