"""A file in a directory → the lock that keeps a second process out of it, and how far that reaches."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import IO

from rl_engine.config.file import ConfigError

LOCK = ".lock"
MOUNTS = Path("/proc/self/mountinfo")
# File systems of which several machines have the same files, and the option under which each machine has locks of its
# own: `flock` then succeeds on all of them at once.
LOCAL = {
    "nfs": "nolock|local_lock=(?:all|flock)",
    "nfs4": "nolock|local_lock=(?:all|flock)",
    "lustre": "localflock",
    "cifs": "nobrl",
    "smb3": "nobrl",
    "fuse.sshfs": "rw",
}


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock, which need not be there."""
    if not lock.is_file():
        return False
    with lock.open(encoding="utf-8") as file:
        # Not LOCK_EX: of a file that was opened to be read NFS gives none.
        return not takes_lock(file, fcntl.LOCK_SH)


def takes_lock(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock, if nobody else holds it. Raises `ConfigError` where there are none (Lustre without `flock`)."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"output_dir: {file.name} cannot be locked ({error.strerror}), so two processes could write there at once: "
            "give an output_dir on a file system with locks"
        ) from error
    return True


def locks_on_one_machine(directory: Path) -> str:
    """What is said where others of the machines that have this directory can take its locks too; else nothing."""
    kind, options = _mount_of(directory.resolve())
    found = re.search(rf"(?:^|,)({LOCAL[kind]})(?:,|$)", options) if kind in LOCAL else None
    if found is None:
        return ""
    return (
        f"output_dir: {directory} is on {kind} ({found[1]}), whose locks hold only within one machine: a process on "
        "another machine could write there too"
    )


def _mount_of(path: Path) -> tuple[str, str]:
    """(kind, options) of the file system that a path is on; nothing where the system does not tell."""
    best, found = 0, ("", "")
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if MOUNTS.is_file() else ():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        kind, _, options = after.split(" ", 2)
        # Of two in one place the later hides the other.
        if path.is_relative_to(point) and len(point) >= best:
            best, found = len(point), (kind, f"{before.split()[5]},{options}")
    return found
