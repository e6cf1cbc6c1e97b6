"""Runs that would train together → the memory that they need, reckoned in a process that may load torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from rl_engine.config import Config
from rl_engine.config.file import ConfigError


def company_lines(configs: Sequence[Config], together: int, jobs: int) -> dict[str, str]:
    """For people: how many of the runs are at work at once in each of `jobs` processes, and what each process needs.

    Raises `ConfigError` where that does not fit. The sweep itself stays without torch, whose threads a fork breaks.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(reckoned, configs, together, jobs).result()


def reckoned(configs: Sequence[Config], together: int, jobs: int) -> dict[str, str]:
    """The same in this process, which loads torch."""
    from dataclasses import replace

    import torch

    from rl_engine.learner.ranks import Ranks
    from rl_engine.plan.card import settle_precision
    from rl_engine.plan.company import Place, check_together, company_lines, settle_together

    ranks = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    here = Place.here(ranks)
    configs, at_once = settle_together(
        [settle_precision(config, ranks.device.type) for config in configs], here, together
    )
    room = replace(here.room, device_gib=here.room.device_gib / jobs, host_gib=here.room.host_gib / jobs)
    place = replace(here, room=room)
    try:
        check_together(configs, place, at_once)
        lines = company_lines(configs, place, at_once)
        return {**lines, "jobs": f"{jobs} such processes at a time"} if jobs > 1 else lines
    except ConfigError as error:
        share = f" (a share of {jobs}: jobs)" if jobs > 1 else ""
        told = str(error).replace("or let fewer run at once: --together", "or give a smaller together")
        raise ConfigError(f"together={together}: {told}{share}") from error
