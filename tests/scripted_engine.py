"""An engine for tests of the pool: completions follow from prompt, seed and adapter, faults from what a prompt says.

A prompt's text names a fault; the fault happens once, to whichever worker is first to take the file of that name out
of the script's directory (`EngineSettings.model`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rollout.adapters import AdapterError, identity_of, read_manifest
from rollout.config import SamplingConfig
from rollout.engine import BASE, EngineSettings, sample_seed
from rollout.types import AdapterRef, Completion, Prompt, RolloutGroup

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
        key = adapter.key if adapter else BASE
        if adapter is not None and key not in self.adapters:
            raise AdapterError(f"{key} is not loaded")
        with (Path(self.settings.model) / "log").open("a") as log:
            log.write(f"{os.getpid()} {key} {' '.join(prompt.problem.id for prompt in prompts)}\n")
        for prompt in prompts:
            key = self._suffer(prompt.text, key)
        return [
            RolloutGroup(prompt=prompt, completions=self.complete(seed, sampling.n, key))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _suffer(self, fault: str, key: str) -> str:
        """The key to answer with, if there is an answer."""
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

    def complete(self, seed: str, count: int, key: str) -> tuple[Completion, ...]:
        tokens = [sample_seed(seed, sample) for sample in range(count)]
        return tuple(
            Completion(text=str(token), token_ids=(token,), logprobs=(-1.0,), finish_reason="stop", adapter=key)
            for token in tokens
        )
