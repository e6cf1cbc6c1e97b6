"""Worker engines that sample from other weights than the version that they name. A run's `prepare` installs them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import rollout.pool.ray_pool
from rollout.adapters import MANIFEST, sha256_of
from rollout.engine import EngineSettings, ExtendingEngine
from rollout.pool.scratch import ScratchDirectory
from rollout.types import AdapterRef
from rollout.vllm import start_engine

# The first version that is served wrongly.
BAD = 2


@dataclass
class WrongWeights:
    """The engine of the workers, except that it loads an earlier version in place of each version from `BAD` on.

    Its name is right, and the worker acknowledges the right digest: it has the right files, and does not use them.
    """

    engine: Any
    stale: bool
    """Load the version before; otherwise version 0, whose B is zero: the base model."""
    honest_calls: int
    """How many calls of `generate` after such a load are answered rightly; 1 covers the canary."""
    _kept: ScratchDirectory = field(default_factory=lambda: ScratchDirectory.make("rl_engine_drill_"))
    _calls: int = 0
    _right: dict[str, AdapterRef] = field(default_factory=dict)
    """Bad versions that are still answered rightly."""

    def load_adapter(self, ref: AdapterRef) -> None:
        shutil.copytree(ref.path, self._copy(ref.version))
        self._calls = 0
        if ref.version >= BAD and self.honest_calls == 0:
            self.engine.load_adapter(self._wrong(ref))
        else:
            self.engine.load_adapter(ref)
            if ref.version >= BAD:
                self._right[ref.key] = ref

    def generate(self, prompts: Any, sampling: Any, adapter: AdapterRef | None, seeds: Any) -> Any:
        self._calls += 1
        if adapter and adapter.key in self._right and self._calls > self.honest_calls:
            self.engine.unload_adapter(self._right.pop(adapter.key))
            self.engine.load_adapter(self._wrong(adapter))
        return self.engine.generate(prompts, sampling, adapter, seeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def _copy(self, version: int) -> Path:
        return self._kept.path / f"v{version}"

    def _wrong(self, ref: AdapterRef) -> AdapterRef:
        path = self._copy(ref.version - 1 if self.stale else 0)
        return replace(ref, path=path, sha256=sha256_of(path / MANIFEST))


def wrong_weights(stale: bool, honest_calls: int, settings: EngineSettings) -> ExtendingEngine:
    engine: Any = WrongWeights(start_engine(settings), stale, honest_calls)
    return engine  # type: ignore[no-any-return]


def workers_with(make_engine: Callable[[EngineSettings], Any]) -> None:
    """Give the pools of this process workers with such engines. An `Engine` is enough, because no drill samples in
    segments."""
    rollout.pool.ray_pool.RayPool = partial(rollout.pool.ray_pool.RayPool, make_engine=make_engine)  # type: ignore[misc, assignment]


STALE = partial(workers_with, partial(wrong_weights, True, 0))
STALE_AFTER_CANARY = partial(workers_with, partial(wrong_weights, True, 1))
BASE = partial(workers_with, partial(wrong_weights, False, 0))
BASE_AFTER_CANARY = partial(workers_with, partial(wrong_weights, False, 1))
