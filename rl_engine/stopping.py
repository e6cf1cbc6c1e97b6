"""SIGINT and SIGTERM → a run that finishes its step, saves and leaves."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

from rl_engine.ranks import Ranks


@dataclass
class StopRequest:
    """Whether someone asked the run to stop, and by which signal. A second request stops it at once."""

    signum: int | None = None

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked: all of them stop after the same step."""
        return ranks.agree(self.signum is not None)
