"""Work that each rank does by itself, and that may fail or be stopped → all ranks go on, or all leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rl_engine.learner.ranks import Ranks
from rollout.engine import EngineError
from rollout.stopping import Stopped, StopRequest


@contextlib.contextmanager
def together(ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """Run this rank's share of parallel work in the block, and tell all ranks at its end how it went.

    Raises `Stopped` on every rank when any was asked to stop, and `EngineError` on ranks that finished when another
    failed, so that no rank is left waiting for one that is gone.
    """
    done = False
    try:
        yield
        done = True
    finally:
        if ranks.agree(stop.asked or not done):
            leave_if_asked(ranks, stop)
            if done:
                raise EngineError("another rank failed while sampling or grading: its output says why")


def leave_if_asked(ranks: Ranks, stop: StopRequest) -> None:
    """Raises `Stopped` on every rank when any was asked to stop."""
    if asked_anywhere(ranks, stop):
        raise Stopped


def asked_anywhere(ranks: Ranks, stop: StopRequest) -> bool:
    """Whether any rank was asked to stop; all ranks get the same answer, and take over the request."""
    number = stop.signum or 0
    if ranks.count > 1:
        # The reduced value decides: a signal that arrives from now on counts at the next check.
        number = int(ranks.max(torch.tensor(float(number), device=ranks.device)))
    if number:
        stop.record(number)
    return bool(number)
