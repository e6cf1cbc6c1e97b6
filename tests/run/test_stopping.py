"""A run that is asked to stop."""

from __future__ import annotations

import os
import signal

import pytest

from rl_engine.run import stopping
from rl_engine.run.stopping import StopRequest


def requested_stops(pause_s: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How a process ends that is asked to stop twice, so many seconds apart; its own code where it is not ended."""
    monkeypatch.setattr(stopping, "ECHO_S", 0.05)
    child = os.fork()
    if child == 0:
        try:
            stop = StopRequest()
            stop.listen()
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                signal.sigtimedwait([], pause_s)
        finally:
            os._exit(40 + (stop.signum or 0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_request_to_stop_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_stops(0.001, monkeypatch) == 40 + signal.SIGINT
    assert requested_stops(0.2, monkeypatch) == -signal.SIGTERM
