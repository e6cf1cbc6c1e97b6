"""This process → its command, its machine, and the commit of the source it runs."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import psutil

SOURCE = Path(__file__).parents[3]


def command() -> str:
    """The command as typed, except that the interpreter and a script are given by name, without their directories."""
    program, *rest = sys.orig_argv
    if rest and rest[0].startswith("/"):
        rest[0] = Path(rest[0]).name
    return shlex.join([Path(program).name, *rest])


def machine() -> str:
    """Processors and memory. The host name is omitted, because reports are shared."""
    memory_gib = psutil.virtual_memory().total / 1024**3
    cpus = f"{os.cpu_count()} CPU cores ({platform.machine()}), {memory_gib:.0f} GiB"
    torch = sys.modules.get("torch")  # already imported by any process that trains
    if torch is None or not torch.cuda.is_available():
        return cpus
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {cpus}"


def ranks() -> int:
    """The number of processes that train together: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def commit() -> str | None:
    """The commit of the source, with `+` if files differ from it; None for an installed wheel."""
    if not (SOURCE / ".git").exists():
        return None
    git = ("git", "-C", str(SOURCE))
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + "+" * changed.returncode if head.returncode == 0 else None
