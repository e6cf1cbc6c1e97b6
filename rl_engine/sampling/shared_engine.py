"""One engine that serves several runs → each run's own engine: it asks, gives its turn away, and gets its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rollout.config import SamplingConfig
from rollout.engine import StreamingEngine
from rollout.types import AdapterRef, Prompt, RolloutGroup


@dataclass
class EngineOfOne:
    """An `Engine` of one run among several. The versions of all runs have the same keys: the engine that is shared
    knows them under the run's name too, and the run's completions name them as they are called in the run."""

    engine: StreamingEngine
    run: str
    """Different for each run that the engine ever serves."""
    wait_until: Callable[[Callable[[], bool]], None]
    """Returns when what it is given holds; others sample, and learn, meanwhile."""
    sleeps: bool
    """Whether nobody else needs the engine while this run learns."""
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
        """This run needs nothing more; the engine serves the others."""
        for ref in [*self._loaded.values()]:
            self.unload_adapter(ref)

    def _own(self, ref: AdapterRef) -> AdapterRef:
        return replace(ref, name=f"{self.run}/{ref.name}")


def _named(group: RolloutGroup, key: str) -> RolloutGroup:
    """Nothing here goes on with another version's tokens, so one key is all of a completion's."""
    return replace(group, completions=tuple(replace(one, adapter=key) for one in group.completions))
