"""Two ranks that are threads of one process and communicate through a list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from rl_engine.learner.ranks import Ranks

T = TypeVar("T")


class ThreadRank(Ranks):
    """One of two ranks. Each writes its value, waits for the other, reads, and waits until the other has read."""

    both_are_here: ClassVar[threading.Barrier] = threading.Barrier(2, timeout=20)
    said: ClassVar[list[Any]] = [None, None]

    @classmethod
    def both(cls) -> tuple[ThreadRank, ThreadRank]:
        cls.both_are_here.reset()
        return cls(0, 2, torch.device("cpu")), cls(1, 2, torch.device("cpu"))

    def broadcast(self, value: T) -> T:
        heard: T = self._heard(value)[0]
        return heard

    def gather(self, mine: list[T]) -> list[T]:
        parts: list[list[T]] = self._heard(mine)
        total = sum(map(len, parts))
        return [parts[index % self.count][index // self.count] for index in range(total)]

    def max(self, values: Tensor) -> Tensor:
        return torch.maximum(*self._heard(values))

    def _heard(self, value: Any) -> list[Any]:
        self.said[self.rank] = value
        self.both_are_here.wait()
        heard = list(self.said)
        self.both_are_here.wait()
        return heard


def on_each(subjects: tuple[T, T], act: Callable[[T], Any], errors: tuple[type[BaseException], ...]) -> list[Any]:
    """Call `act` on each rank's subject in its own thread. Returns each result, or the repr of the error raised."""

    def outcome(subject: T) -> Any:
        try:
            return act(subject)
        except errors as error:
            return repr(error)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(outcome, subjects))
