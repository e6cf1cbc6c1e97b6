"""Engines for tests that accept further work while they sample: an adapter for any engine, and a scripted one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rollout.config import SamplingConfig
from rollout.engine import InFlight
from rollout.types import AdapterRef, Prompt, RolloutGroup
from tests.helpers.scripted_engine import ScriptedEngine

TURN_S = 0.02
SLOW_TURNS = 25


class Later:
    """A batch whose completions all arrive at once."""

    def __init__(self, completions: int, answer: Callable[[], list[RolloutGroup]]) -> None:
        self.answer, self.groups = answer, list[RolloutGroup]()
        self.batch = InFlight(completions, lambda _: self.groups)

    def come(self) -> InFlight:
        self.groups = self.answer()
        for place, completion in enumerate(c for group in self.groups for c in group.completions):
            self.batch.take(place, completion)
        return self.batch


class Streaming:
    """`begin` and `advance` for an engine that has `generate`: one batch per turn, in the order they began."""

    generate: Any

    @property
    def later(self) -> list[Later]:
        made: list[Later] = self.__dict__.setdefault("_later", [])
        return made

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        answer = partial(self.generate, prompts, sampling, adapter, seeds)
        self.later.append(Later(sampling.n * len(prompts), answer))
        return self.later[-1].batch

    def advance(self) -> list[InFlight]:
        return [self.later.pop(0).come()] if self.later else []


@dataclass
class _Going:
    prompts: Sequence[Prompt]
    key: str
    """The adapter key to answer with."""
    turns: int
    later: Later = field(init=False)


@dataclass
class StreamingScripted(ScriptedEngine):
    """All batches advance in the same turn. A batch takes one turn, or with a `slow` prompt as many as last half a
    second. A prompt's fault happens in the turn after its batch began."""

    going: list[_Going] = field(default_factory=list)

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        return self._add(prompts, sampling, adapter, lambda key: self._sampled(prompts, sampling, key, seeds))

    def begin_extending(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        prompts = [group.prompt for group in groups]
        return self._add(
            prompts, sampling, adapter, lambda key: self._extended(groups, sampling.max_tokens, key, seeds)
        )

    def _add(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        adapter: AdapterRef | None,
        answer: Callable[[str], list[RolloutGroup]],
    ) -> InFlight:
        slow = any(prompt.text == "slow" for prompt in prompts)
        going = _Going(prompts, self._noted(prompts, adapter), SLOW_TURNS if slow else 1)
        going.later = Later(sampling.n * len(prompts), lambda: answer(going.key))
        self.going.append(going)
        return going.later.batch

    def advance(self) -> list[InFlight]:
        time.sleep(TURN_S)
        for going in self.going:
            going.turns -= 1
            for prompt in going.prompts:
                if prompt.text != "slow":
                    going.key = self._suffer(prompt.text, going.key)
        over = [going for going in self.going if going.turns <= 0]
        self.going = [going for going in self.going if going.turns > 0]
        return [going.later.come() for going in over]
