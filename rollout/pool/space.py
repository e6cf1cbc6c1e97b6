"""What a pool sends and stores → the space it takes on a machine, and an explanation if there is too little."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rollout.engine import Sent

SCRATCH = "rl_engine_ray_"
# Linux's limit on the path of a socket, minus what Ray appends to its directory's path.
LONGEST_DIRECTORY = 107 - len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store")
# With 256, as with two workers here, Ray's first process waits in vain for the second; 300 are enough.
FEWEST_FILES = 300
SHARED_MEMORY = Path("/dev/shm")
SMALLEST_STORE = 512 * 2**20
# Ray keeps a store larger than this only in shared memory; a smaller one may also be on disk.
LARGEST_ON_DISK = 10_000_000_000
# A whole model goes through the store in pieces of this size, with this many pieces in the store at once.
PIECE_BYTES = 256 * 2**20
PIECES_KEPT = 4
# Overhead of a version in transit: names, digests, PEFT's configuration, and the store's own bookkeeping.
SLACK = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpace:
    """Free space on this machine, in bytes, and its limit on open files."""

    shared: int
    """Shared memory available to the object store."""
    scratch: int
    """Disk space in the directory for temporary files, where workers write versions."""
    files: int = FEWEST_FILES
    """Files that a process may open at most."""

    @classmethod
    def here(cls) -> FreeSpace:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray itself raises the soft limit
        shared = os.statvfs(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
        return cls(
            shared=shared.f_frsize * shared.f_bavail if shared else 0,
            scratch=shutil.disk_usage(tempfile.gettempdir()).free,
            files=sys.maxsize if most == resource.RLIM_INFINITY else most,
        )


def needed_bytes(sent: Sent) -> int:
    """What a machine's object store must hold at once: all versions, or the pieces of a whole model in transit, and one
    answer."""
    pieces = min(sent.version_bytes, PIECES_KEPT * PIECE_BYTES)
    versions = pieces if sent.whole_models else sent.versions * sent.version_bytes
    return int(SLACK * (versions + sent.answer_bytes))


def store_bytes(sent: Sent, workers: int, free: FreeSpace) -> int:
    """The size of the store of a local cluster: as much as may be in transit at once, if shared memory allows."""
    under_way = int(SLACK * 2 * workers * sent.answer_bytes)
    return max(SMALLEST_STORE, needed_bytes(sent), min(needed_bytes(sent) + under_way, free.shared))


def lacks(sent: Sent, workers: int, free: FreeSpace) -> str | None:
    """Why the workers of a local cluster cannot be sent what they need, or None."""
    if (why := too_long(Path(tempfile.gettempdir()) / f"{SCRATCH}{8 * 'x'}")) is not None:
        return why
    if free.files < FEWEST_FILES:
        return (
            f"this shell allows a process {free.files} open files, and Ray's own need {FEWEST_FILES}: raise the limit "
            "(ulimit -n), or sample without Ray (rollout.placement=inprocess)"
        )
    store = needed_bytes(sent)
    on_disk = store > free.shared
    if on_disk and store > LARGEST_ON_DISK:
        return (
            f"{_versions(sent)} go to the workers through shared memory, {_gib(store)} with one answer, and "
            f"{SHARED_MEMORY} has {_gib(free.shared)} free: make it larger (docker run --shm-size), or {_smaller(sent)}"
        )
    # A whole model is read where it was published, because local workers see that directory.
    copies = 0 if sent.whole_models else workers * sent.versions
    written = copies * sent.version_bytes + on_disk * store
    if written > free.scratch:
        return (
            f"rollout.workers is {workers}, and each writes down {_versions(sent)}, {_gib(written)} in all; "
            f"{tempfile.gettempdir()} has {_gib(free.scratch)} free: set TMPDIR to a directory with more, lower "
            f"rollout.workers, or {_smaller(sent)}"
        )
    return None


def too_long(directory: Path) -> str | None:
    """Why a local cluster cannot have its sockets in that directory, or None."""
    if len(os.fsencode(directory)) <= LONGEST_DIRECTORY:
        return None
    return (
        f"{directory} has too long a name for Ray's sockets ({LONGEST_DIRECTORY} bytes at most): set TMPDIR to a "
        "directory with a shorter one"
    )


def too_small(sent: Sent, store: int, node: str) -> str | None:
    """Why the object store on a machine of a joined cluster cannot hold what is sent there, or None."""
    needed = needed_bytes(sent)
    if store >= needed:
        return None
    return (
        f"rollout.address: the object store of {node} has {_gib(store)}, and {_versions(sent)} are sent there, "
        f"{_gib(needed)} with one answer: start it with `ray start --object-store-memory={needed}`, or {_smaller(sent)}"
    )


def _versions(sent: Sent) -> str:
    if sent.whole_models:
        return f"pieces of a whole model of {_gib(sent.version_bytes)}"
    return f"{sent.versions} versions of {_gib(sent.version_bytes)}"


def _smaller(sent: Sent) -> str:
    if sent.whole_models:
        return "train an adapter (method=lora)"
    ahead = ", lower rollout.max_staleness" if sent.versions > 2 else ""
    return f"lower lora.rank or lora.targets{ahead}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
