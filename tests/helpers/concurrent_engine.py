"""A fake engine that accepts further work while it samples and finishes each batch after a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rollout.config import SamplingConfig
from rollout.engine import InFlight, sample_seed
from rollout.types import AdapterRef, Prompt, RolloutGroup
from tests.helpers.answering_engine import AnsweringEngine

LONGEST = 5


@dataclass
class StreamingAnswers(AnsweringEngine):
    """Answers are a function of prompt, seed and the run's version, whatever else is in flight. The number of tokens
    until a batch is done depends on seed and run."""

    log: list[tuple[str, str]] = field(default_factory=list)
    """(run, first seed) of every batch, in the order they began."""
    largest: int = 0
    """Largest number of batches in flight."""
    asleep: bool = False
    _pending: list[tuple[int, InFlight, list[RolloutGroup]]] = field(default_factory=list)
    _advanced: int = 0

    def at_advance(self, count: int) -> None:
        """Called with the number of tokens sampled so far, for tests to override."""

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        assert not self.asleep
        assert adapter is not None
        assert adapter.key in self._loaded
        run, _, key = adapter.key.rpartition("/")
        groups = [
            RolloutGroup(
                prompt=prompt, completions=tuple(self._answer(prompt, seed, n, key) for n in range(sampling.n))
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        self.log.append((run, seeds[0]))
        batch = InFlight(1, lambda _: groups)
        due = self._advanced + 1 + sample_seed(f"{run}/{seeds[0]}", 0) % LONGEST
        self._pending.append((due, batch, groups))
        self.largest = max(self.largest, len(self._pending))
        return batch

    def advance(self) -> list[InFlight]:
        self._advanced += 1
        self.at_advance(self._advanced)
        assert self._pending, "nothing to sample"
        there = [one for one in self._pending if one[0] <= self._advanced]
        self._pending = [one for one in self._pending if one[0] > self._advanced]
        for _, batch, groups in there:
            batch.take(0, groups[0].completions[0])
        return [batch for _, batch, _ in there]

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def begin_extending(self, *_: object) -> InFlight:
        raise NotImplementedError

    def extend(self, *_: object) -> list[RolloutGroup]:
        raise NotImplementedError
