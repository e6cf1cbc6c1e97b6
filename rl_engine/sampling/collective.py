"""What each rank does or reads by itself, and may fail, be stopped or differ → all ranks go on, or all leave."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evals.launch.group import is_seen
from rl_engine.config import Config
from rl_engine.config.fields import as_yaml, leaves
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


def check_command(ranks: Ranks, configs: Sequence[Config], options: Mapping[str, object]) -> None:
    """Check that the ranks were started by the same command: someone may type one on each machine. Collective.

    Raises `ConfigError` on every rank.
    """
    given: dict[str, Any] = {"--config": len(configs)}
    given |= {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    for number, config in enumerate(configs, 1):
        place = f"--config {number}: " if len(configs) > 1 else ""
        given |= {f"{place}{key}": value for key, value in leaves(config.model_dump(mode="json"))}
    first, *others = ranks.gather([given])
    for rank, other in enumerate(others, 1):
        for key in {**first, **other}:
            if other.get(key) != first.get(key):
                raise ConfigError(
                    f"{key} is {as_yaml(first.get(key))} on rank 0 and {as_yaml(other.get(key))} on rank {rank}: start "
                    "every rank with the same command"
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
