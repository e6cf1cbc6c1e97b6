"""One engine that serves several runs → an engine for each run, which yields the run's turn while it waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rollout.config import SamplingConfig
from rollout.engine import StreamingEngine
from rollout.types import AdapterRef, Prompt, RolloutGroup


@dataclass
class EngineOfOne:
    """The `Engine` of one run among several. Versions of different runs have the same keys, so the shared engine knows
    them prefixed with the run's name, while the run's completions carry the unprefixed keys."""

    engine: StreamingEngine
    run: str
    """Unique among all runs that the engine ever serves."""
    wait_until: Callable[[Callable[[], bool]], None]
    """Blocks until the given condition holds; other runs sample and learn meanwhile."""
    sleeps: bool
    """Whether the engine may sleep while this run learns, because no other run needs it."""
    _loaded: dict[str, AdapterRef] = field(default_factory=dict, init=False)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`."""
        batch = self.engine.begin(prompts, sampling, adapter and self._own(adapter), seeds)
        self.wait_until(lambda: batch.done)
        groups = batch.groups()
        return groups if adapter is None else [_named(group, adapter.key) for group in groups]

    def load_adapter(self, ref: AdapterRef) -> None:
        self.engine.load_adapter(self._own(ref))
        self._loaded[ref.key] = ref

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._loaded.pop(ref.key, None)
        self.engine.unload_adapter(self._own(ref))

    def sleep(self) -> None:
        if self.sleeps:
            self.engine.sleep()

    def wake(self) -> None:
        if self.sleeps:
            self.engine.wake()

    def close(self) -> None:
        """Unload this run's adapters; the shared engine stays open for the others."""
        for ref in [*self._loaded.values()]:
            self.unload_adapter(ref)

    def _own(self, ref: AdapterRef) -> AdapterRef:
        return replace(ref, name=f"{self.run}/{ref.name}")


def _named(group: RolloutGroup, key: str) -> RolloutGroup:
    """The group with `key` on all completions: nothing is continued here, so each completion has a single version."""
    return replace(group, completions=tuple(replace(one, adapter=key) for one in group.completions))
