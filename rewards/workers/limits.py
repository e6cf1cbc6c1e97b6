"""Limits on a worker process, which it sets on itself before it sees any input.

A judgement reads text and answers. It needs no files, no processes and little memory, so all three are
restricted at the lowest level available. The time limit is a kernel timer with its default action, which ends
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
"""Bytes; this close to the limit counts as having reached it. Python and the C library request less at a time."""
TOUCHED_KIB = 256 * 2**10
ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir", "os.fspath", "os.walk"})
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, whatever it is doing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _lower(kind: int, soft: int) -> None:
    """Set a soft and hard limit, never above the hard limit that the process already has."""
    _, hard = resource.getrlimit(kind)
    limit = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(kind, (limit, limit))


def confine(*, memory_mib: int, own_code: bool) -> None:
    """Apply the resource limits.

    The memory limit comes on top of the address space that is already mapped: libraries reserve much that they never
    touch, and more of it on machines with many cores. With a limit below that, every further allocation would fail,
    and the interpreter does not survive some of those failures.

    With `own_code`, the process runs a user's reward function, which may read files and start threads, but has the same
    memory and time limits and may not write to files.
    """
    if own_code:
        # Python finds the temporary directory by writing to it, so do that now: a function may import torch, which asks
        # for the directory, when it is called.
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
    """Audit hook: allow no writing, processes or network, whatever code the input makes the parser run."""
    if event == "open":
        flags = arguments[2]
        if isinstance(flags, int) and flags & WRITE_FLAGS:
            raise PermissionError("a grading worker may not write files")
    elif event.startswith(FORBIDDEN_EVENTS) and event not in ALLOWED_EVENTS:
        raise PermissionError(f"a grading worker may not use {event}")


def _address_space_mib() -> int:
    """The size of all mappings of this process, in MiB, which is what the memory limit counts."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize() // 2**20


def has_run_short() -> bool:
    """Whether this process has ever come close to its address space limit.

    Libraries catch every exception, so a `MemoryError` can pass for a result. This detects that if memory was allocated
    little by little; a single allocation that is too large leaves no trace.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    # This runs for every item, so decide the usual case cheaply: a process that has touched little memory.
    if limit == resource.RLIM_INFINITY or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < TOUCHED_KIB:
        return False
    found = re.search(r"^VmPeak:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return found is not None and int(found[1]) * 2**10 > limit - NEARLY


def start_timer(timeout_s: float) -> None:
    """Make the kernel end this process after `timeout_s` seconds of wall-clock time, unless the timer is stopped."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)


def stop_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.0)
