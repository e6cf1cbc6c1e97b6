"""What each rank does or reads by itself, and may fail, be stopped or differ → all ranks go on, or all leave."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from evals.launch.group import is_seen
from rl_engine.config.file import ConfigError
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


def check_same(ranks: Ranks, read: Mapping[str, str]) -> None:
    """Check that what the ranks read is the same: key of the configuration → digest. Collective.

    Raises `ConfigError` on every rank.
    """
    first, *others = ranks.gather([dict(read)])
    for rank, other in enumerate(others, 1):
        if differing := [key for key in first if other.get(key) != first[key]]:
            raise ConfigError(
                f"{differing[0]}: rank {rank} reads something else there than rank 0: give every machine the same files"
            )


def check_shared(directory: Path, ranks: Ranks) -> None:
    """Check that every rank sees what the main one writes in a directory, which exists on the main one. Collective.

    Raises `ConfigError` on every rank.
    """
    if ranks.count == 1:
        return
    with tempfile.NamedTemporaryFile(dir=directory) if ranks.is_main else contextlib.nullcontext() as mine:
        name = ranks.broadcast(Path(mine.name).name if mine else "")
        blind = [rank for rank, seen in enumerate(ranks.gather([is_seen(directory / name)])) if not seen]
    if blind:
        raise ConfigError(
            f"output_dir: rank {blind[0]} does not see what rank 0 writes in {directory}: give a directory on a file "
            "system that all ranks share"
        )
