"""Prompts → the prompts of a step: a shuffled pass over all of them an epoch, resumable by one number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Cursor(Generic[T]):
    """Takes items in an order that is a function of the seed and of how many were taken before."""

    items: Sequence[T]
    seed: int
    shuffle: bool = True
    position: int = 0
    """Items taken since the run began: all that a resumed run needs."""
    _epoch: int = field(default=-1, init=False, repr=False)
    _order: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("no problem is left to train on")

    def take(self, count: int) -> list[T]:
        """The next `count` items; a new epoch starts where one ends."""
        taken = []
        for position in range(self.position, self.position + count):
            epoch, index = divmod(position, len(self.items))
            taken.append(self.items[self._order_of(epoch)[index]])
        self.position += count
        return taken

    def _order_of(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            self._order = list(range(len(self.items)))
            if self.shuffle:
                random.Random(f"{self.seed}-{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order
