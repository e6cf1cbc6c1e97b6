"""A forecast and some devices → how the run sits on them: memory by part, sequences side by side, seconds of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.forecast import Forecast
from rl_engine.plan.memory import Memory, Widths, check_fits, estimate
from rl_engine.plan.step_time import CardSampler, DataSheet, Devices, StepTime, Throughput
from rl_engine.run.peaks import Available, available


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A run on devices of one kind."""

    title: str
    count: int
    memory: Memory
    """Of one device and the process that has it."""
    room: Available
    refusals: tuple[str, ...]
    """Why the run cannot be there."""
    sampler: CardSampler | None
    """How vLLM's share of a card is used; None on a CPU."""
    side_by_side: int
    """Sequences that a device samples at once."""
    groups: int
    """That the busiest device samples."""
    idle: int
    """Devices without a group to sample."""
    time: StepTime | None


def on_cards(made: Forecast, devices: Devices, speed: Throughput | DataSheet | None) -> Fit:
    """One process a card, data parallel. Of the machines they are in nothing is known: their memory is not checked."""
    config, work = made.config, made.work
    memory = estimate(config, made.shape, sum(made.groups.values()), devices.count, card_gib=devices.gib)
    room = Available(device_gib=devices.gib, host_gib=math.inf)
    widths = Widths.of(made.shape)
    sampler = CardSampler.of(config, widths, made.total, devices.gib)
    groups = -(-work.groups // devices.count)
    together = min(groups * work.completions, sampler.side_by_side(config, work))
    refusals = _refusals(memory, room)
    if together == 0:
        refusals += (
            f"the sampler's share of the card holds keys and values of {sampler.tokens:,} tokens beside the weights, "
            f"less than one sequence: raise rollout.memory_fraction, which is {config.rollout.memory_fraction:g}",
        )
    if refusals or speed is None:
        time = None
    elif isinstance(speed, Throughput):
        time = speed.predict(work, devices)
    else:
        time = speed.predict(config, widths, sampler, work, made.flops, devices)
    return Fit(
        title=f"{devices.count} × {devices.gib:g} GiB",
        count=devices.count,
        memory=memory,
        room=room,
        refusals=refusals,
        sampler=sampler,
        side_by_side=together,
        groups=groups,
        idle=max(0, devices.count - work.groups),
        time=time,
    )


def on_this_cpu(made: Forecast, speed: Throughput | DataSheet | None) -> Fit:
    """One process on this machine.

    Raises `ConfigError` for a card's data sheet.
    """
    if isinstance(speed, DataSheet):
        raise ConfigError("--card is of a card: say which with --devices, as --devices 1x80")
    memory = estimate(made.config, made.shape, sum(made.groups.values()), 1)
    room = available(Ranks(0, 1, torch.device("cpu")))
    work = made.work
    return Fit(
        title="this machine",
        count=1,
        memory=memory,
        room=room,
        refusals=_refusals(memory, room),
        sampler=None,
        side_by_side=min(made.config.rollout.max_num_seqs, work.episodes),
        groups=work.groups,
        idle=0,
        time=speed.predict(work, Devices(count=1, gib=room.device_gib)) if speed else None,
    )


def _refusals(memory: Memory, room: Available) -> tuple[str, ...]:
    try:
        check_fits(memory, room)
    except ConfigError as error:
        return (str(error),)
    return ()
