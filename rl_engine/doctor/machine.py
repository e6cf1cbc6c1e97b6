"""The machine → lines for the console: processors, memory, GPUs, and library versions against the lock file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from evals.launch.limits import memory_room, usable_cores

LOCKS = Path(__file__).parents[2] / "requirements"
CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that determine the speed of matrix products on a CPU, slowest first, as the Linux kernel names them
# on x86 and on Arm.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
LIBRARIES = ("torch", "vllm", "deepspeed", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True)
class Library:
    """An installed package's version, and the version in the lock file."""

    name: str
    installed: str | None
    locked: str | None
    """None if there is no lock file to compare with."""

    @property
    def as_locked(self) -> bool:
        return self.installed is not None and self.locked in (None, self.installed)

    def describe(self) -> str:
        if self.installed is None:
            return f"{self.name} missing (lock: {self.locked})"
        return f"{self.name} {self.installed}" + ("" if self.as_locked else f" (lock: {self.locked})")


def instructions(cpuinfo: str) -> list[str]:
    """The names in INSTRUCTIONS that the first processor in /proc/cpuinfo lists."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(value.split())
            return [instruction for instruction in INSTRUCTIONS if instruction in have]
    return []


def libraries(lock: Path, names: Sequence[str] = LIBRARIES) -> list[Library]:
    """The installed and the locked version of each package. vLLM for the CPU is a package with another name."""
    pinned = {}
    if lock.is_file():
        rows = (line.partition("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line)
        pinned = {name.strip(): wanted.split(";")[0].strip() for name, _, wanted in rows}
    return [
        Library(name, _installed(name), pinned.get(name) or pinned.get(f"{name}-cpu") if pinned else None)
        for name in names
    ]


def _installed(name: str) -> str | None:
    for package in (name, f"{name}-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def gpus() -> list[str]:
    """One line per GPU: its name, memory, compute capability, and whether it computes in bfloat16."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16"
        capability = f"capability {properties.major}.{properties.minor}"
        lines.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}, {bf16}")
    return lines


def machine_rows() -> dict[str, str]:
    """Names and values that describe the machine."""
    found = gpus()
    memory, limit = psutil.virtual_memory(), memory_room()
    room = memory.available if limit is None else min(memory.available, limit)
    cores = f"{usable_cores()} usable of {os.cpu_count()}"
    lock = LOCKS / ("cuda.txt" if found else "cpu.txt")
    have = instructions(CPUINFO.read_text(encoding="utf-8")) if CPUINFO.is_file() else []
    installed = libraries(lock)
    others = [library for library in installed if not library.as_locked]
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processors": f"{cores}; {', '.join(have) or 'no vector instructions known'}",
        "memory": f"{room / 2**30:.1f} GiB available of {memory.total / 2**30:.1f}",
        "cards": "; ".join(found) or "none that CUDA can use",
        "libraries": ", ".join(library.describe() for library in installed),
        "lock": f"{len(others)} not as in {lock.name}"
        if others
        else f"as in {lock.name}"
        if lock.is_file()
        else "none here",
    }
