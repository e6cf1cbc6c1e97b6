"""SIGINT and SIGTERM → a run that finishes its step, saves and leaves."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from types import FrameType

from rl_engine.learner.ranks import Ranks

ECHO_S = 3.0
"""A launcher passes on what the terminal or the scheduler has sent to the whole group: one request comes twice."""


@dataclass
class StopRequest:
    """Whether someone asked the run to stop, and by which signal. A second request stops it at once."""

    signum: int | None = None
    _asked: float = field(default=0.0, init=False)
    """Monotonic seconds."""

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self._asked = number, time.monotonic()
        elif time.monotonic() - self._asked > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked: all of them stop after the same step."""
        return ranks.agree(self.signum is not None)
