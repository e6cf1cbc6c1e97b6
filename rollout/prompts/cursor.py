"""Prompts → the prompts of a step: one shuffled pass over all of them per epoch, from several sources by weight;
resumable from a position and from what was left out of the epochs around it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Epoch:
    """One pass over the items."""

    number: int
    start: int
    """Items taken before it."""
    order: list[int]
    """Indices of the items, in the order they are taken."""
    left_out: list[int]
    """Indices of the items that this epoch skips."""

    @property
    def end(self) -> int:
        return self.start + len(self.order)


@dataclass
class Cursor(Generic[T]):
    """Takes items in an order determined by the seed, the number of items taken before, and which of them gave no
    learning signal.

    The rule of `replay`: when an epoch begins, each item whose last group gave no learning signal stays in with this
    probability, by draws from the seed and the epoch's number; if none would stay, all do.
    """

    items: Sequence[T]
    seed: int | str
    shuffle: bool = True
    position: int = 0
    """Items taken since the run began."""
    replay: float = 1.0
    _silent: set[int] = field(default_factory=set, init=False, repr=False)
    """Indices of the items whose last group gave no learning signal."""
    _epochs: list[Epoch] = field(default_factory=list, init=False, repr=False)
    """Epochs whose positions may still be looked up, oldest first."""

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("no problem is left to train on")

    def take(self, count: int) -> list[T]:
        """The next `count` items; a new epoch starts where one ends."""
        taken = [self.items[self._place(position)] for position in range(self.position, self.position + count)]
        self.position += count
        return taken

    def learned(self, position: int, taught: bool) -> None:
        """Record whether the group of the item taken at `position` gave a learning signal."""
        if self.replay == 1:
            return
        (self._silent.discard if taught else self._silent.add)(self._place(position))
        while self._epochs[0].end <= position:  # of the epoch that holds the position, the end lies behind it
            del self._epochs[0]

    def state(self, position: int) -> dict[str, Any]:
        """What a resumed run needs to continue from `position`, as JSON; empty if the position is enough."""
        if self.replay == 1:
            return {}
        kept = [epoch for epoch in self._epochs if epoch.end > position] or self._epochs[-1:]
        return {
            "silent": sorted(self._silent),
            "epochs": [[epoch.number, epoch.start, epoch.left_out] for epoch in kept],
        }

    def restore(self, position: int, state: dict[str, Any]) -> None:
        """Return to the point where `state` was taken."""
        self.position, self._silent = position, set(state.get("silent", ()))
        self._epochs = [self._epoch(number, start, left_out) for number, start, left_out in state.get("epochs", ())]

    def _place(self, position: int) -> int:
        if self.replay == 1:
            # All epochs have the same length, so any of them can be computed directly.
            number, index = divmod(position, len(self.items))
            if not self._epochs or self._epochs[0].number != number:
                self._epochs = [self._epoch(number, number * len(self.items), [])]
            return self._epochs[0].order[index]
        if not self._epochs:
            self._epochs = [self._epoch(0, 0, [])]
        while position >= self._epochs[-1].end:
            last = self._epochs[-1]
            self._epochs.append(self._epoch(last.number + 1, last.end, self._left_out_of(last.number + 1)))
        epoch = next(epoch for epoch in self._epochs if epoch.start <= position < epoch.end)
        return epoch.order[position - epoch.start]

    def _epoch(self, number: int, start: int, left_out: list[int]) -> Epoch:
        order = list(range(len(self.items)))
        if self.shuffle:
            random.Random(f"{self.seed}-{number}").shuffle(order)
        absent = set(left_out)
        return Epoch(number, start, [place for place in order if place not in absent], left_out)

    def _left_out_of(self, number: int) -> list[int]:
        draws = random.Random(f"{self.seed}-{number}-replay")
        # One draw per item, silent or not, so that an item's draw does not depend on the others.
        drawn = [draws.random() for _ in self.items]
        left_out = [place for place in sorted(self._silent) if drawn[place] >= self.replay]
        return left_out if len(left_out) < len(self.items) else []


@dataclass
class Mixed(Generic[T]):
    """Takes items from several sources, each in its own order, in proportion to their weights: each place goes to the
    source furthest behind its share, on a tie to the first."""

    cursors: Sequence[Cursor[T]]
    weights: Sequence[float]
    position: int = 0
    _counted: tuple[int, list[int]] = field(default=(0, []), init=False, repr=False)
    """A position and the items of each source taken before it, from which the next count starts."""

    def take(self, count: int) -> list[T]:
        taken = []
        for _ in range(count):
            taken += self.cursors[self._next([cursor.position for cursor in self.cursors])].take(1)
            self.position += 1
        return taken

    def learned(self, position: int, taught: bool) -> None:
        counts = self._counts(position)
        source = self._next(counts)
        self.cursors[source].learned(counts[source], taught)

    def state(self, position: int) -> dict[str, Any]:
        states = [cursor.state(own) for cursor, own in zip(self.cursors, self._counts(position), strict=True)]
        return {"sources": states} if any(states) else {}

    def restore(self, position: int, state: dict[str, Any]) -> None:
        self.position = position
        states = state.get("sources") or [{} for _ in self.cursors]
        for cursor, own, one in zip(self.cursors, self._counts(position), states, strict=True):
            cursor.restore(own, one)

    def _next(self, counts: Sequence[int]) -> int:
        place, total = sum(counts) + 1, sum(self.weights)
        behind = [weight / total * place - count for weight, count in zip(self.weights, counts, strict=True)]
        return behind.index(max(behind))

    def _counts(self, position: int) -> list[int]:
        """Number of items from each source among the first `position` items."""
        start, counts = self._counted
        if start > position or not counts:
            start, counts = 0, [0] * len(self.cursors)
        for _ in range(start, position):
            source = self._next(counts)
            counts = [count + (place == source) for place, count in enumerate(counts)]
        self._counted = position, counts
        return counts
