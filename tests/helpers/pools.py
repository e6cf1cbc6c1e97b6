"""What tests of the pool share: its settings, a scripted engine's, and Ray's processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from rollout.engine import EngineSettings, PoolSettings

PoolMaker = Callable[..., Any]
SETTINGS = PoolSettings(
    workers=2,
    address=None,
    cpus_per_worker=1,
    prompts_per_piece=2,
    start_timeout_s=120,
    piece_timeout_s=3,
    max_restarts=4,
)


def scripted(directory: Path) -> EngineSettings:
    return EngineSettings(model=str(directory), dtype="float32", max_model_len=8, lora_rank=1)


def rays_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("ray::" in word or "/ray/" in word for word in process.cmdline()):
                found.append(process)
    return found


def until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
