"""Configuration and device → its `auto` values resolved: precision, learning rate, the sampler's share of the GPU.

A command resolves them once, at its start, so that what runs is what is printed and saved.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.learning_rate import Rate, rate_of_run
from rl_engine.plan.memory import PHASES, Memory, learner_parts
from rl_engine.plan.sizes import Widths
from rl_engine.policy.base_model import DTYPES, load_meta_model, load_model_config
from rl_engine.run.console import RunConsole
from rl_engine.run.memory import GIB, available
from rl_engine.run.resumption import began_with
from rollout.config import WHOLE_CARD
from rollout.servable import check_computes, check_precision, precision_of

C = TypeVar("C", Config, SftConfig)

# Share of the memory left free for what no estimate covers: fragmentation, workspaces of kernels.
MARGIN = 0.05
# vLLM's activations, workspaces and CUDA graphs, besides weights and cache, as vLLM reported for a 1.5B model on an
# H200 (docs/memory.md).
ENGINE_GIB = 2.2


def settle_precision(config: C, device_type: str, *, resume: bool = False) -> C:
    """The configuration with `auto` in `model.dtype` resolved. A resumed run keeps the precision it began with.

    Raises `ConfigError` if the sampler cannot serve the run's adapters in that precision.
    """
    begun = began_with(Path(config.output_dir), "model", "dtype") if resume else None
    if config.model.dtype == "auto":
        dtype = begun if begun in DTYPES else precision_of("auto", device_type)
        config = config.with_values("model", dtype=dtype)
    # Supervised training has no sampler.
    adapter = config.method == "lora" and config.module == Config.module
    try:
        check_precision(config.model.precision, device_type, "model.dtype", adapter=adapter)
    except ValueError as error:
        if begun == config.model.precision:
            remedy = f"the run in {config.output_dir} began in that precision: resume it on a CPU"
            raise ConfigError(f"{str(error).partition(': ')[0]}, and {remedy}") from error
        raise ConfigError(f"{error}; or use method=full, which serves no adapter") from error
    return config


def settle_rate(config: C, console: RunConsole, *, resume: bool = False) -> C:
    """The configuration with `auto` in `optim.lr` resolved by rule; prints the number and its derivation. A resumed run
    keeps the rate it began with, also if it is to be longer."""
    if config.optim.lr != "auto":
        return config
    begun = began_with(Path(config.output_dir), "optim", "lr") if resume else None
    if isinstance(begun, int | float):
        console.print_rows({"rate": f"{begun:.3g}, as the run began"})
        return config.with_values("optim", lr=begun)
    rule: Rate = rate_of_run(config, load_model_config(config.model))
    console.print_rows({"rate": "\n".join((f"{rule.value:.3g} by rule:", *rule.derivation))})
    return config.with_values("optim", lr=rule.value)


def settle_share(
    config: Config, meta_model: nn.Module, ranks: int, gpu_gib: float, free_gib: float | None = None
) -> Config:
    """The configuration with `auto` in `rollout.memory_fraction` and `rollout.sleep` resolved, for GPUs of that size.

    An awake sampler keeps its share while the learner works. It stays awake if the estimate finds room for the learner
    and, next to it, for the sampler's weights and the keys and values of all sequences sampled at once, at their
    longest. A sleeping sampler gets what the learner leaves free while it is not working.

    Args:
        config: The run's configuration.
        meta_model: See `rl_engine.policy.base_model.load_meta_model`.
        ranks: Number of processes that share the groups and what ZeRO shards.
        gpu_gib: Total memory of a GPU.
        free_gib: Memory that is free before anything is loaded; the total if absent.
    """
    rollout = config.rollout
    share, sleep = rollout.memory_fraction, rollout.sleep
    if rollout.placement == "ray":
        # Workers have their own GPUs and never sleep.
        return config.with_values("rollout", memory_fraction=WHOLE_CARD if share == "auto" else share)
    learner = Memory(parts=tuple(learner_parts(config, meta_model, ranks, gpu_gib)))
    usable = (gpu_gib if free_gib is None else min(gpu_gib, free_gib)) - MARGIN * gpu_gib
    beside = usable - max(learner.needed(phase) for phase in PHASES)
    alone = usable - max(learner.needed(phase) for phase in ("rollout", "sync"))
    least, wanted = _sampler_gib(config, meta_model, ranks)
    if sleep == "auto":
        sleep = (wanted if share == "auto" else share * gpu_gib) > beside
    if share == "auto":
        # If there is less than the sampler's minimum, the memory check reports it and says what would help.
        decided = max(min(WHOLE_CARD, (alone if sleep else beside) / gpu_gib), min(1.0, least / gpu_gib))
        share = math.floor(decided * 100) / 100 or 0.01
    return config.with_values("rollout", memory_fraction=share, sleep=sleep)


def _sampler_gib(config: Config, meta_model: nn.Module, ranks: int) -> tuple[float, float]:
    """(what an engine needs at least, for one sequence; what it can make use of), GiB on each of its GPUs."""
    size = DTYPES[config.model.precision].itemsize
    cards = config.rollout.tensor_parallel_size
    weights = sum(parameter.numel() for parameter in meta_model.parameters()) * size
    sequence = Widths.of(meta_model).sequence_bytes(config.longest_sequence, size)
    groups = math.ceil(config.train.problems_per_step / ranks)
    rows = min(config.rollout.max_num_seqs, groups * config.sampling.n)
    return tuple((weights + count * sequence) / cards / GIB + ENGINE_GIB for count in (1, rows))  # type: ignore[return-value]


def settle_card(config: Config, ranks: Ranks, meta_model: nn.Module | None = None) -> Config:
    """`settle_share` for this rank's GPU; a CPU has nothing to share. All ranks must then run rank 0's configuration.
    `meta_model`: the model's shape, if the caller has it.

    Raises `ValueError` for a GPU that cannot compute in the run's precision.
    """
    if ranks.device.type != "cuda":
        return config
    check_computes(config.model.precision, "model.dtype")
    gpu_gib = torch.cuda.get_device_properties(ranks.device).total_memory / GIB
    shape = meta_model or load_meta_model(config.model)
    return settle_share(config, shape, ranks.count, gpu_gib, free_gib=available(ranks).device_gib)


def sampler_line(config: Config) -> str:
    """The sampler's share of the GPU as text, for a settled configuration."""
    rollout = config.rollout
    share = f"{rollout.card_share:.0%} of "
    if rollout.placement == "ray":
        return share + "a card of its own for each worker"
    state = "asleep" if rollout.sleep else "awake"
    return f"{share}the card, {state} while the learner works"
