"""Evaluations with a scripted engine, which is right at known rates."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.evaluate import evaluate
from evals.launch.group import Launch
from evals.options import EvalOptions
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, InFlight
from rollout.types import AdapterRef, Completion, Prompt, RolloutGroup
from tests.helpers.builders import completion
from tests.helpers.streaming_engine import Streaming

ALONE = Launch(0, 1)
BASE_RATE, ADAPTER_RATE = 0.3, 0.6


@dataclass
class Scripted(Streaming):
    """An engine that is right at a known rate, varies by sample, and always answers the same request in the same
    way."""

    rates: dict[str, float]
    breaks_after: int | None = None
    """Raises an interrupt after this many calls."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(adapter, problem id) of every problem that it was given."""
    calls: int = 0
    settings: EngineSettings | None = None

    def start(self, settings: EngineSettings) -> Scripted:
        self.settings = settings
        return self

    def load_adapter(self, ref: AdapterRef) -> None:
        assert ref.key in self.rates

    def close(self) -> None:
        pass

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        if self.calls == self.breaks_after:
            raise KeyboardInterrupt
        self.calls += 1
        key = adapter.key if adapter else "base"
        self.asked += [(key, prompt.problem.id) for prompt in prompts]
        return [
            RolloutGroup(
                prompt=prompt,
                completions=tuple(
                    self.answer(prompt, key, random.Random(f"{key}/{seed}/{i}")) for i in range(sampling.n)
                ),
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def answer(self, prompt: Prompt, key: str, draw: random.Random) -> Completion:
        value = int(prompt.problem.answer) + (draw.random() >= self.rates[key]) * draw.randint(1, 3)
        return completion(f"\\boxed{{{value}}}", tokens=draw.randint(5, 30), adapter=key)


class Unhurried(Scripted):
    """Its completions are graded while it continues to sample."""

    def advance(self) -> list[InFlight]:
        time.sleep(0.2)
        return super().advance()


class Counting(Scripted):
    """Records how many batches are in flight at each turn."""

    def advance(self) -> list[InFlight]:
        self.there = [*self.__dict__.get("there", []), len(self.later)]
        return super().advance()


def options_for(tmp_path: Path, adapter: Path, **changes: Any) -> EvalOptions:
    plain = EvalOptions(
        model="embedded",
        adapters=(str(adapter),),
        suites=("held_out",),
        samples=4,
        limit=60,
        batch=64,
        output=tmp_path / "out.json",
    )
    return replace(plain, **changes)


def scripted(**settings: Any) -> Scripted:
    return Scripted({"base": BASE_RATE, "policy-v000007": ADAPTER_RATE}, **settings)


def measure(options: EvalOptions, engine: Scripted, launch: Launch = ALONE) -> str:
    """Run the command's work and return what it printed."""
    out = io.StringIO()
    evaluate(options, launch, Console(file=out, width=200), engine.start)
    return out.getvalue()


def timeless(path: Path) -> Any:
    """The JSON without the values that depend on the clock."""
    found = json.loads(path.read_text())
    for key in ("when", "seconds"):
        del found[key]
    for suite in found["suites"]:
        for row in suite["rows"]:
            del row["tokens_per_s"]
    return found
