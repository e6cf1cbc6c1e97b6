"""A forecast and some devices → the run on these devices: memory by part, concurrent sequences, seconds per step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.card import settle_share
from rl_engine.plan.forecast import Forecast
from rl_engine.plan.memory import Memory, estimate, shortage
from rl_engine.plan.sizes import Devices, Widths
from rl_engine.plan.step_time import DataSheet, GpuSampler, StepTime, Throughput
from rl_engine.policy.base_model import DTYPES
from rl_engine.run.memory import GIB, Available, available


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A run on devices of one kind."""

    title: str
    count: int
    memory: Memory
    """What one device and its process need."""
    room: Available
    """What they have."""
    refusals: tuple[str, ...]
    """Why the run does not fit."""
    sampler: GpuSampler | None
    """How vLLM's share of a GPU is used; None on a CPU."""
    sleeps: bool
    """Whether vLLM gives its share back while the learner works."""
    concurrent_sequences: int
    """Sequences that a device samples at once."""
    groups: int
    """Prompts for which the busiest device samples completions."""
    idle: int
    """Devices without a group to sample."""
    time: StepTime | None


def on_gpus(made: Forecast, devices: Devices, speed: Throughput | DataSheet | None) -> DevicePlan:
    """Data parallel with one process per GPU. The machines' own memory is unknown and not checked."""
    work = made.work
    config = settle_share(made.config, made.meta_model, devices.count, devices.gib)
    memory = estimate(config, made.meta_model, devices.count, gpu_gib=devices.gib)
    room = Available(device_gib=devices.gib, host_gib=math.inf)
    widths = Widths.of(made.meta_model)
    sampler = GpuSampler.of(config, made.total, devices.gib)
    groups = math.ceil(work.groups / devices.count)
    concurrent = min(groups * work.completions, sampler.concurrent_sequences(config, widths, work))
    short = shortage(memory, room)
    refusals = [short] if short else []
    if concurrent == 0:
        length = work.prompt_tokens + work.completion_tokens
        one = widths.sequence_bytes(length, DTYPES[config.model.precision].itemsize) / sampler.cards
        refusals.append(
            f"one sequence needs {one / GIB:.2f} GiB of KV cache, and the sampler has {sampler.kv_cache:.2f} GiB beside"
            f" the weights: raise rollout.memory_fraction, which is {config.rollout.card_share:g}"
        )
    if refusals or speed is None:
        time = None
    elif isinstance(speed, Throughput):
        time = speed.predict(work, devices)
    else:
        time = speed.predict(config, widths, sampler, work, made.flops, devices)
    return DevicePlan(
        title=f"{devices.count} × {devices.gib:g} GiB",
        count=devices.count,
        memory=memory,
        room=room,
        refusals=tuple(refusals),
        sampler=sampler,
        sleeps=config.rollout.sleep is True,
        concurrent_sequences=concurrent,
        groups=groups,
        idle=max(0, devices.count - work.groups),
        time=time,
    )


def on_this_cpu(made: Forecast, speed: Throughput | DataSheet | None) -> DevicePlan:
    """One process on this machine.

    Raises `ConfigError` for a GPU's data sheet.
    """
    if isinstance(speed, DataSheet):
        raise ConfigError("--card gives a GPU's data sheet, and the plan is for a CPU: add --devices, as 1x80")
    memory = estimate(made.config, made.meta_model, 1)
    room = available(Ranks(0, 1, torch.device("cpu")))
    short = shortage(memory, room)
    work = made.work
    return DevicePlan(
        title="this machine",
        count=1,
        memory=memory,
        room=room,
        refusals=(short,) if short else (),
        sampler=None,
        sleeps=False,
        concurrent_sequences=min(made.config.rollout.max_num_seqs, work.episodes),
        groups=work.groups,
        idle=0,
        time=speed.predict(work, Devices(count=1, gib=room.device_gib)) if speed else None,
    )
