"""A pool worker's own process: an engine, and the versions it was sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rollout.adapters import MANIFEST, read_manifest, sha256_of
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, ExtendingEngine
from rollout.files.durable import written_aside
from rollout.pool.engine_thread import EngineThread
from rollout.pool.scratch import WORKERS, ScratchDirectory
from rollout.types import AdapterRef, Prompt, RolloutGroup

T = TypeVar("T")

# Variables that a launcher sets for its ranks; a worker inherits them but is not a rank.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PoolWorker:
    """The actor. It is created before the engine, so that its process is known while the engine starts.

    Calls come one at a time, or each in its own thread if it samples several work items side by side.
    """

    def __init__(self, cpus: int) -> None:
        # torch and vLLM read these on import, which comes later. Engines that bind threads would all pick the same
        # first cores.
        os.environ.update(OMP_NUM_THREADS=str(cpus), VLLM_CPU_OMP_THREADS_BIND="nobind")
        for name in LAUNCHER:
            os.environ.pop(name, None)
        self.scratch = ScratchDirectory.make(WORKERS)
        self._loaded: dict[str, AdapterRef] = {}
        self._engine: Any = None
        self._thread: EngineThread | None = None
        """The engine's thread, if several work items are sampled side by side."""

    def ping(self) -> None:
        """Answer, to show that the worker is alive."""

    def start(
        self, settings: EngineSettings, make_engine: Callable[[EngineSettings], ExtendingEngine], together: bool
    ) -> None:
        """Start the engine. `together`: it is a `StreamingEngine` that samples several work items side by side."""
        if together:
            self._thread = EngineThread(lambda: self._engine.advance())
        self._engine = self._asked(partial(make_engine, settings))

    def _asked(self, what: Callable[[], T]) -> T:
        """Call `what` in the engine's thread, if it has one."""
        return what() if self._thread is None else self._thread.call(what)

    def load_adapter(self, ref: AdapterRef, files: dict[str, bytes]) -> str:
        """Write a version's files, load it under its name, and return the digest of the manifest found here.

        Raises `AdapterError` if a file does not match the manifest, `OSError` if there is no space for the files.
        """
        size, free = sum(map(len, files.values())), shutil.disk_usage(self.scratch.path).free
        if size > free:
            raise OSError(
                f"{ref.key} is {size:,} bytes, and {self.scratch.path.parent} has {free:,} free: set TMPDIR to a "
                "directory with more space"
            )
        here = replace(ref, path=self.scratch.path / ref.key)
        with written_aside(here.path) as scratch:
            for name, content in files.items():
                (scratch / name).write_bytes(content)
        return self.load_from(here)

    def look_for(self, ref: AdapterRef) -> Path | None:
        """Where this machine has a version's files, as published or as written by `take_piece`; None if it has not.

        Raises `AdapterError` if a file does not match the manifest.
        """
        for path in (ref.path, self.scratch.path / ref.key):
            if (path / MANIFEST).is_file() and sha256_of(path / MANIFEST) == ref.sha256:
                read_manifest(path)
                return path
        return None

    def take_piece(self, key: str, name: str, start: int, piece: Any, left: int) -> None:
        """Append a piece to a version's file; pieces arrive in order. `left`: bytes still to come, this piece included.

        Raises `OSError` if there is no space for them.
        """
        free = shutil.disk_usage(self.scratch.path).free
        if left > free:
            raise OSError(
                f"{key} takes {left:,} more bytes, and {self.scratch.path.parent} has {free:,} free: set TMPDIR to a "
                "directory with more space"
            )
        directory = self.scratch.path / key
        directory.mkdir(exist_ok=True)
        with (directory / name).open("ab" if start else "wb") as file:
            file.write(piece)

    def load_from(self, ref: AdapterRef) -> str:
        """Load the version at `ref.path`, and return the digest of its manifest."""
        self._asked(partial(self._engine.load_adapter, ref))
        self._loaded[ref.key] = ref
        return sha256_of(ref.path / MANIFEST)

    def unload_adapter(self, key: str) -> None:
        self._asked(partial(self._engine.unload_adapter, self._loaded.pop(key)))
        shutil.rmtree(self.scratch.path / key, ignore_errors=True)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`."""
        if self._thread is not None:
            return self._thread.sample(partial(self._engine.begin, prompts, sampling, adapter, seeds))
        groups: list[RolloutGroup] = self._engine.generate(prompts, sampling, adapter, seeds)
        return groups

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `ExtendingEngine.extend`."""
        if self._thread is not None:
            return self._thread.sample(partial(self._engine.begin_extending, groups, sampling, adapter, seeds))
        whole: list[RolloutGroup] = self._engine.extend(groups, sampling, adapter, seeds)
        return whole

    def close(self) -> None:
        self.scratch.remove()
