"""What a worker of the pool does in its own process: an engine, and the adapters it was sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rollout.adapters import MANIFEST, sha256_of
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, ExtendingEngine
from rollout.files.durable import written_aside
from rollout.pool.scratch import ScratchDirectory
from rollout.types import AdapterRef, Prompt, RolloutGroup

# A launcher's word for its own processes; a worker that inherits it is none of them.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def vllm_engine(settings: EngineSettings) -> ExtendingEngine:
    """The engine of in-process placement."""
    from rollout.vllm.engine import VllmEngine  # here, in the worker: the pool's own process may have none

    return VllmEngine(settings)


class PoolWorker:
    """Made before the engine, so that its process is known while that starts."""

    def __init__(self, cpus: int) -> None:
        # Read when torch and vLLM are imported, which is later. Engines that bind their threads would all choose the
        # same first cores.
        os.environ.update(OMP_NUM_THREADS=str(cpus), VLLM_CPU_OMP_THREADS_BIND="nobind")
        for name in LAUNCHER:
            os.environ.pop(name, None)
        self.scratch = ScratchDirectory.make("rl_engine_worker_")
        self._loaded: dict[str, AdapterRef] = {}
        self._engine: Any = None

    def ping(self) -> None:
        """It is there."""

    def start(self, settings: EngineSettings, make_engine: Callable[[EngineSettings], ExtendingEngine]) -> None:
        self._engine = make_engine(settings)

    def load_adapter(self, ref: AdapterRef, files: dict[str, bytes]) -> str:
        """Write a version's files, load it under its name, and say the digest of the manifest found here.

        Raises `AdapterError` where a file is not what the manifest says, `OSError` where there is no room for them.
        """
        size, free = sum(map(len, files.values())), shutil.disk_usage(self.scratch.path).free
        if size > free:
            raise OSError(f"{ref.key} is {size:,} bytes, and {self.scratch.path.parent} has {free:,} free")
        here = replace(ref, path=self.scratch.path / ref.key)
        with written_aside(here.path) as scratch:
            for name, content in files.items():
                (scratch / name).write_bytes(content)
        self._engine.load_adapter(here)
        self._loaded[ref.key] = here
        return sha256_of(here.path / MANIFEST)

    def unload_adapter(self, key: str) -> None:
        ref = self._loaded.pop(key)
        self._engine.unload_adapter(ref)
        for file in ref.path.iterdir():
            file.unlink()
        ref.path.rmdir()

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`."""
        groups: list[RolloutGroup] = self._engine.generate(prompts, sampling, adapter, seeds)
        return groups

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `ExtendingEngine.extend`."""
        whole: list[RolloutGroup] = self._engine.extend(groups, sampling, adapter, seeds)
        return whole

    def close(self) -> None:
        self.scratch.remove()
