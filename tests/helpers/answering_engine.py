"""A fake engine whose first completion of each group is right and whose others are wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout.adapters import identity_of
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, sample_seed
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup
from tests.helpers.streaming_engine import Streaming

TOKENS = 8
# Overrides for runs with this engine, whose log-probabilities are made up.
UNCHECKED = ("rollout.max_kl=1e9", "rollout.max_logprob_gap=1e9")


@dataclass
class AnsweringEngine(Streaming):
    """Tokens are a function of seed and version. A new version answers differently, as the canary requires."""

    settings: EngineSettings
    pause_s: float = 0.0
    """Time to answer, or to load an adapter."""
    _loaded: set[str] = field(default_factory=set)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        key = adapter.key if adapter else BASE
        assert adapter is None or key in self._loaded
        time.sleep(self.pause_s)
        return [
            RolloutGroup(
                prompt=prompt, completions=tuple(self._answer(prompt, seed, n, key) for n in range(sampling.n))
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _answer(self, prompt: Prompt, seed: str, number: int, key: str) -> Completion:
        draws = [sample_seed(f"{seed}/{key}/{number}", index) for index in range(TOKENS)]
        vocabulary = sorted(set(prompt.token_ids))
        return Completion(
            text=f"\\boxed{{{prompt.problem.answer if number == 0 else 'none'}}}",
            token_ids=tuple(vocabulary[draw % len(vocabulary)] for draw in draws),
            logprobs=(-3.0,) * TOKENS,
            finish_reason="stop",
            adapter=key,
        )

    def load_adapter(self, ref: AdapterRef) -> None:
        assert identity_of(ref.path) == ref.sha256
        time.sleep(self.pause_s)
        self._loaded.add(ref.key)

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._loaded.remove(ref.key)

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def unhurried(settings: EngineSettings) -> AnsweringEngine:
    """An engine slow enough that a test can catch it at work."""
    return AnsweringEngine(settings, pause_s=1.0)


def brisk(settings: EngineSettings) -> AnsweringEngine:
    """An engine that a test sometimes catches at work, in a run of many steps."""
    return AnsweringEngine(settings, pause_s=0.1)


def in_place_of_vllm() -> None:
    """Call this in the fork that becomes the command."""
    import rollout.vllm.engine

    rollout.vllm.engine.VllmEngine = AnsweringEngine  # type: ignore[assignment, misc]
