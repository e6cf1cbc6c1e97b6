"""What an engine was asked for at once → its groups, once all of them are there; others may be asked for meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rollout.types import Completion, RolloutGroup


@dataclass(eq=False)
class InFlight:
    """Completions in the order they were asked for, each there or not yet."""

    count: int
    assemble: Callable[[list[Completion]], list[RolloutGroup]]
    """All completions → the groups, one a prompt."""
    _sampled: dict[int, Completion] = field(default_factory=dict, init=False)

    @property
    def left(self) -> int:
        """Completions that are still sampled."""
        return self.count - len(self._sampled)

    @property
    def done(self) -> bool:
        return not self.left

    def take(self, place: int, completion: Completion) -> None:
        assert place not in self._sampled
        self._sampled[place] = completion

    def groups(self) -> list[RolloutGroup]:
        """To be called when all is done."""
        assert self.done
        return self.assemble([self._sampled[place] for place in range(self.count)])
