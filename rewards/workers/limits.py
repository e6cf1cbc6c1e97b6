"""What a worker process may not do, set by the kernel before it sees any input.

A judgement reads text and answers. It needs no files, no processes and little memory, so all three are
refused at the lowest level there is. The time limit is a kernel timer with its default action, which ends
the process even when C code holds the interpreter lock, and even when the parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
FORBIDDEN_EVENTS = (
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "pty.",
    "tempfile.",
    "urllib.",
    "webbrowser.",
    "ctypes.dlopen",
)
NEARLY = 32 * 2**20
"""Bytes below the limit: what Python and the C library ask for at a time is less."""
TOUCHED_KIB = 256 * 2**10
ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir", "os.fspath", "os.walk"})
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, whatever it is doing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _lower(kind: int, soft: int) -> None:
    """Set a limit, never above what the process already has."""
    _, hard = resource.getrlimit(kind)
    limit = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(kind, (limit, limit))


def confine(*, memory_mib: int, own_code: bool) -> None:
    """Apply the resource limits.

    What is mapped by now is not counted: libraries reserve much that they never touch, and more of it on a machine of
    many cores. Under a limit below it every further allocation fails, and the interpreter itself does not survive some.

    With `own_code`, a reward function of the user's runs here: it may read files and start threads, but it has the same
    memory, may write no byte, and its time is limited like everything else.
    """
    if own_code:
        # Found by writing into it. Libraries ask when they are imported (torch), which a function may do when called.
        with contextlib.suppress(FileNotFoundError):
            tempfile.gettempdir()
    _lower(resource.RLIMIT_AS, (_address_space_mib() + memory_mib) * 2**20)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, 256 if own_code else 64)
    if not own_code:
        _lower(resource.RLIMIT_NPROC, 0)
        sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: no writing, no processes, no network, whatever code the input made the parser run."""
    if event == "open":
        flags = arguments[2]
        if isinstance(flags, int) and flags & WRITE_FLAGS:
            raise PermissionError("a grading worker may not write files")
    elif event.startswith(FORBIDDEN_EVENTS) and event not in ALLOWED_EVENTS:
        raise PermissionError(f"a grading worker may not use {event}")


def _address_space_mib() -> int:
    """What this process has mapped, which is what the limit on memory counts."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize() // 2**20


def has_run_short() -> bool:
    """Whether this process has ever had nearly all the address space that it may have.

    Libraries catch every exception, and take the `MemoryError` that they were given for an answer. That shows here
    where memory was taken little by little; a single allocation that is too large leaves no mark.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    # Asked of every item: whoever has touched little is not asked further.
    if limit == resource.RLIM_INFINITY or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < TOUCHED_KIB:
        return False
    found = re.search(r"^VmPeak:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return found is not None and int(found[1]) * 2**10 > limit - NEARLY


def start_timer(timeout_s: float) -> None:
    """Let the kernel end this process after `timeout_s` of wall clock unless the timer is stopped."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)


def stop_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.0)
