"""What a worker of the pool does in its own process: an engine, and the adapters it was sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollout.adapters import MANIFEST, read_manifest, sha256_of
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
        return self.load_from(here)

    def look_for(self, ref: AdapterRef) -> Path | None:
        """Where this machine has a version's files, as published or as `take_piece` wrote them; None where it has not.

        Raises `AdapterError` where a file is not what the manifest says.
        """
        for path in (ref.path, self.scratch.path / ref.key):
            if (path / MANIFEST).is_file() and sha256_of(path / MANIFEST) == ref.sha256:
                read_manifest(path)
                return path
        return None

    def take_piece(self, key: str, name: str, start: int, piece: Any, left: int) -> None:
        """Write bytes of a version's file, of which the first come first. `left`: bytes of all that is to come.

        Raises `OSError` where there is no room for them.
        """
        free = shutil.disk_usage(self.scratch.path).free
        if left > free:
            raise OSError(
                f"{key} takes {left:,} more bytes, and {self.scratch.path.parent} has {free:,} free: set TMPDIR to a "
                "directory with more"
            )
        directory = self.scratch.path / key
        directory.mkdir(exist_ok=True)
        with (directory / name).open("ab" if start else "wb") as file:
            file.write(piece)

    def load_from(self, ref: AdapterRef) -> str:
        """Load what lies at `ref.path`; the digest of the manifest there."""
        self._engine.load_adapter(ref)
        self._loaded[ref.key] = ref
        return sha256_of(ref.path / MANIFEST)

    def unload_adapter(self, key: str) -> None:
        self._engine.unload_adapter(self._loaded.pop(key))
        shutil.rmtree(self.scratch.path / key, ignore_errors=True)

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
