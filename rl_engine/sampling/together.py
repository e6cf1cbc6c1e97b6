"""What every rank does for itself, and may fail or be stopped at → all of them go on, or all of them leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rl_engine.learner.ranks import Ranks
from rollout.engine import EngineError
from rollout.stopping import Stopped, StopRequest


@contextlib.contextmanager
def together(ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """The block is this rank's share of what all do at once; at its end they hear of each other.

    Raises `Stopped` on every rank when any was asked to stop, and `EngineError` on those whose share is done where
    another's failed: nobody is left waiting for one that is gone.
    """
    done = False
    try:
        yield
        done = True
    finally:
        if ranks.agree(stop.asked or not done):
            leave_if_asked(ranks, stop)
            if done:
                raise EngineError("another rank failed while it sampled or graded: what happened is in its output")


def leave_if_asked(ranks: Ranks, stop: StopRequest) -> None:
    """Raises `Stopped` on every rank when any was asked to stop."""
    number = stop.signum or 0
    if ranks.count > 1:
        # What all have heard decides: a signal that comes now is for the next time that they ask each other.
        number = int(ranks.max(torch.tensor(float(number), device=ranks.device)))
    if number:
        stop.heed(number)
        raise Stopped
