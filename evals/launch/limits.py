"""Control groups → what a container or a job's limit leaves this process of the machine: processors and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIPS = Path("/proc/self/cgroup")
"""A line a hierarchy, `number:controllers:path`, without controllers in version 2."""


def usable_cores(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int:
    """How many threads find a processor each: those that this process may run on, or as many as its share of their time
    fills (`docker run --cpus`, a pod's limit), which no library asks for. With more, each waits for one that has none.
    """
    shares = [share for group, unified in _groups("cpu", root, memberships) if (share := _share(group, unified))]
    return max(1, int(min([len(os.sched_getaffinity(0)), *shares])))


def thread_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the libraries are to be told of threads, where they would count processors that this process cannot have;
    its share of them beside others of a launcher. Nothing where a person has."""
    cores = usable_cores()
    if environment.get("OMP_NUM_THREADS") or cores == len(os.sched_getaffinity(0)):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1"))))}


def memory_room(root: Path = ROOT, memberships: Path = MEMBERSHIPS) -> int | None:
    """Bytes that the control groups of this process leave it; None without a limit."""
    rooms = (
        _room(group / "memory.max", group / "memory.current", group / "memory.stat")
        if unified
        else _room(group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", group / "memory.stat")
        for group, unified in _groups("memory", root, memberships)
    )
    return min((room for room in rooms if room is not None), default=None)


def _groups(controller: str, root: Path, memberships: Path) -> Iterator[tuple[Path, bool]]:
    """The directories of the groups that may limit this process, up to the root, and whether they are of version 2."""
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
    """How many processors' time the group has; None without a limit."""
    files = (group / "cpu.max",) if unified else (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
    if not all(file.is_file() for file in files):
        return None
    quota, period = " ".join(file.read_text(encoding="utf-8") for file in files).split()
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _room(limit: Path, used: Path, stat: Path) -> int | None:
    """Bytes of the limit that are not used; pages of files that can be dropped count as not used."""
    if not (limit.is_file() and used.is_file()):
        return None
    text = limit.read_text(encoding="utf-8").strip()
    if text == "max":
        return None
    statistics = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines()) if stat.is_file() else {}
    droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(0, int(text) - int(used.read_text(encoding="utf-8")) + droppable)
