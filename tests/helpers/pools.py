"""Shared by the tests of the pool: its settings, a scripted engine's settings, and Ray's processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, PoolSettings
from rollout.types import AdapterRef, Problem, Prompt, RolloutGroup
from tests.helpers.scripted_engine import ScriptedEngine

PoolMaker = Callable[..., Any]
SAMPLING = SamplingConfig(n=3)
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


def prompt_of(number: int, fault: str = "none", name: str = "p") -> Prompt:
    problem = Problem(id=f"{name}{number}", text=fault, answer="")
    return Prompt(problem=problem, text=fault, token_ids=(1,))


def seeds(prompts: list[Prompt]) -> list[str]:
    return [f"seed/{prompt.problem.id}" for prompt in prompts]


def expected(prompts: list[Prompt], adapter: AdapterRef | None = None) -> list[RolloutGroup]:
    """The groups that a single engine without faults returns."""
    engine = ScriptedEngine(scripted(Path("/nowhere")))
    return [
        RolloutGroup(prompt=prompt, completions=engine.complete(seed, SAMPLING.n, adapter.key if adapter else "base"))
        for prompt, seed in zip(prompts, seeds(prompts), strict=True)
    ]


def log_of(directory: Path) -> list[tuple[int, str, list[str]]]:
    """(pid, adapter, prompts) of each work item that was started."""
    lines = [line.split() for line in (directory / "log").read_text().splitlines()]
    return [(int(pid), key, ids) for pid, key, *ids in lines]


def published(root: Path, version: int) -> AdapterRef:
    return AdapterStore(root / "adapters").publish(
        version, lambda directory: _write(directory / "weights", f"weights of {version}"), {"rank": 1}
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)
