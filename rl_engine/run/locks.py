"""A file in a directory → the lock that keeps a second process out, and whether it holds across machines."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import IO

from rl_engine.config.file import ConfigError
from rollout.files import exclusive

LOCK = ".lock"
MOUNTS = Path("/proc/self/mountinfo")
# Network file systems, and the mount option with which locks are local to each machine: `flock` then succeeds on all
# machines at once.
LOCAL = {
    "nfs": "nolock|local_lock=(?:all|flock)",
    "nfs4": "nolock|local_lock=(?:all|flock)",
    "lustre": "localflock",
    "cifs": "nobrl",
    "smb3": "nobrl",
    "fuse.sshfs": "rw",
}


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock; false if the file does not exist."""
    if not lock.is_file():
        return False
    with lock.open(encoding="utf-8") as file:
        # Not LOCK_EX, which NFS refuses for a file opened for reading.
        return not takes_lock(file, fcntl.LOCK_SH)


def takes_lock(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if nobody else holds it. Raises `ConfigError` on file systems without locks (Lustre without
    `flock`)."""
    try:
        return exclusive.takes_lock(file, how)
    except OSError as error:
        raise ConfigError(
            f"output_dir: {file.name} cannot be locked ({error.strerror}), so two processes could write there at once: "
            "give an output_dir on a file system with locks"
        ) from error


def locks_on_one_machine(directory: Path) -> str:
    """A warning if other machines that mount this directory can take the same lock; otherwise empty."""
    kind, options = _mount_of(directory.resolve())
    found = re.search(rf"(?:^|,)({LOCAL[kind]})(?:,|$)", options) if kind in LOCAL else None
    if found is None:
        return ""
    return (
        f"output_dir: {directory} is on {kind} ({found[1]}), whose locks hold only within one machine: a process on "
        "another machine could write there too"
    )


def _mount_of(path: Path) -> tuple[str, str]:
    """(type, options) of the file system that a path is on; empty if the system does not list it."""
    best, found = 0, ("", "")
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if MOUNTS.is_file() else ():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        kind, _, options = after.split(" ", 2)
        # If two are mounted at one place, the later hides the earlier.
        if path.is_relative_to(point) and len(point) >= best:
            best, found = len(point), (kind, f"{before.split()[5]},{options}")
    return found
