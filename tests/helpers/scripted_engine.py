"""An engine for tests of the pool: completions follow from prompt, seed and adapter, and prompts can trigger faults.

A prompt's text names a fault. It happens once, in the worker that is first to remove the file of that name from the
script's directory (`EngineSettings.model`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rollout.adapters import AdapterError, identity_of, read_manifest
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, sample_seed
from rollout.segments import is_unfinished, joined
from rollout.types import BASE, AdapterRef, Completion, Prompt, RolloutGroup

BAD_START = "bad start"


@dataclass
class ScriptedEngine:
    settings: EngineSettings
    adapters: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (Path(self.settings.model) / BAD_START).exists():
            raise ValueError("the model is not there")

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        key = self._begin(prompts, adapter)
        return self._sampled(prompts, sampling, key, seeds)

    def _sampled(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, key: str, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        return [
            RolloutGroup(prompt=prompt, completions=self.complete(seed, sampling.n, key, sampling.max_tokens))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        key = self._begin([group.prompt for group in groups], adapter)
        return self._extended(groups, sampling.max_tokens, key, seeds)

    def _extended(
        self, groups: Sequence[RolloutGroup], limit: int, key: str, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        def longer(begun: Completion, seed: str, sample: int) -> Completion:
            if not is_unfinished(begun, limit):
                return begun
            return joined(begun, _segment(seed, sample, key, len(begun.token_ids), limit), (), str)

        return [
            replace(group, completions=tuple(longer(begun, seed, i) for i, begun in enumerate(group.completions)))
            for group, seed in zip(groups, seeds, strict=True)
        ]

    def _begin(self, prompts: Sequence[Prompt], adapter: AdapterRef | None) -> str:
        """The adapter key to answer with, after any faults that the prompts trigger."""
        key = self._noted(prompts, adapter)
        for prompt in prompts:
            key = self._suffer(prompt.text, key)
        return key

    def _noted(self, prompts: Sequence[Prompt], adapter: AdapterRef | None) -> str:
        """The requested adapter key, after logging the request."""
        key = adapter.key if adapter else BASE
        if adapter is not None and key not in self.adapters:
            raise AdapterError(f"{key} is not loaded")
        with (Path(self.settings.model) / "log").open("a") as log:
            log.write(f"{os.getpid()} {key} {' '.join(prompt.problem.id for prompt in prompts)}\n")
        return key

    def _suffer(self, fault: str, key: str) -> str:
        if fault == "poison":
            os._exit(1)
        if fault == "slow":
            time.sleep(0.5)
        try:
            (Path(self.settings.model) / fault).unlink()
        except FileNotFoundError:
            return key
        if fault == "raise":
            raise ValueError("the sampler stumbled")
        if fault in ("die", "hang"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "die" else signal.SIGSTOP)
            time.sleep(60)
        return "policy-v000099" if fault == "stale" else key

    def load_adapter(self, ref: AdapterRef) -> None:
        assert identity_of(ref.path) == ref.sha256
        self.adapters[ref.key] = read_manifest(ref.path)["files"]["weights"]

    def unload_adapter(self, ref: AdapterRef) -> None:
        del self.adapters[ref.key]

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def complete(self, seed: str, count: int, key: str, max_tokens: int = 1) -> tuple[Completion, ...]:
        return tuple(_segment(seed, sample, key, 0, max_tokens) for sample in range(count))


def length_of(seed: str, sample: int) -> int:
    """The number of tokens of a completion: one, or up to nine if the seed contains `long`."""
    return 1 + sample_seed(seed, sample) % 9 if "long" in seed else 1


def _segment(seed: str, sample: int, key: str, start: int, max_tokens: int) -> Completion:
    length = length_of(seed, sample)
    tokens = tuple(sample_seed(seed, sample, place) for place in range(start, min(length, max_tokens)))
    return Completion(
        text=str(tokens[0]),
        token_ids=tokens,
        logprobs=(-1.0,) * len(tokens),
        finish_reason="stop" if length <= max_tokens else "length",
        adapter=key,
    )
