"""Runs of a sweep → the memory of those that would train together, and the cards of each process, both determined in a
child process that may import torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rollout.pool.cards import visible_cards
from rollout.servable import driver_version


def lines_together(configs: Sequence[Config], together: int, jobs: int) -> dict[str, str]:
    """Lines for the user: how many runs are in progress at once in each of `jobs` processes, and what each process
    needs.

    Raises `ConfigError` if that does not fit. The sweep itself must not import torch, whose threads make forking
    unsafe.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(estimate_together, configs, together, jobs).result()


def estimate_together(configs: Sequence[Config], together: int, jobs: int) -> dict[str, str]:
    """Like `lines_together`, in this process, which imports torch."""
    from dataclasses import replace

    import torch

    from rl_engine.learner.ranks import Ranks
    from rl_engine.plan.card import settle_precision
    from rl_engine.plan.concurrent import Place, check_together, lines_together, settle_together

    ranks = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    here = Place.here(ranks)
    configs, at_once = settle_together(
        [settle_precision(config, ranks.device.type) for config in configs], here, together
    )
    # Each process has its own card.
    device_gib = here.room.device_gib / (1 if here.on_gpu else jobs)
    room = replace(here.room, device_gib=device_gib, host_gib=here.room.host_gib / jobs)
    place = replace(here, room=room)
    try:
        check_together(configs, place, at_once)
        lines = lines_together(configs, place, at_once)
        return {**lines, "jobs": f"{jobs} such processes at a time"} if jobs > 1 else lines
    except ConfigError as error:
        share = f" (a share of {jobs}: jobs)" if jobs > 1 else ""
        message = str(error).replace("or let fewer run at once: --together", "or give a smaller together")
        raise ConfigError(f"together={together}: {message}{share}") from error


# Two processes on one card would each claim the memory that was free when they started. To share a card, several runs
# use one process.


def cards_here() -> tuple[str, ...]:
    """The names of the cards that a run would see; empty if there are none or torch is built for the CPU. Determined in
    another process, as above."""
    if driver_version() is None:
        return ()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return visible_cards(pool.submit(_count).result())


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def dealt(cards: tuple[str, ...], jobs: int, needed: Iterable[int]) -> list[str]:
    """The cards of each process, as values of `CUDA_VISIBLE_DEVICES`, for as many of `jobs` as there are cards for.
    `needed`: how many cards each run uses."""
    each = max(needed, default=1)
    hands = [",".join(cards[first : first + each]) for first in range(0, len(cards), each)]
    return hands[: min(jobs, len(cards) // each)]
