"""Configuration and device → what its `auto` comes to there: the precision, the sampler's share of the card, its sleep.

A command settles them once, at its start: what runs is what is printed and what is written down.
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
from rl_engine.plan.memory import PHASES, Memory, learner_parts
from rl_engine.plan.sizes import Widths
from rl_engine.policy.base_model import DTYPES, load_meta_model
from rl_engine.run.peaks import GIB, available
from rl_engine.run.resumption import began_with
from rollout.config import WHOLE_CARD
from rollout.servable import check_computes, check_precision, precision_of

C = TypeVar("C", Config, SftConfig)

# Of what there is, left to what no estimate knows: fragments, kernels' workspaces.
MARGIN = 0.05
# vLLM's own activations, workspaces and CUDA graphs beside weights and cache, as it said itself of a 1.5B model on an
# H200 (docs/memory.md).
ENGINE_GIB = 2.2


def settle_precision(config: C, device_type: str, *, resume: bool = False) -> C:
    """The configuration with a precision for `auto` in `model.dtype`. A run that is resumed keeps the one it began in.

    Raises `ConfigError` where the sampler that it needs cannot serve its adapters in that.
    """
    begun = began_with(Path(config.output_dir), "model", "dtype") if resume else None
    if config.model.dtype == "auto":
        dtype = begun if begun in DTYPES else precision_of("auto", device_type)
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    # Supervised training samples nothing.
    adapter = config.method == "lora" and config.module == Config.module
    try:
        check_precision(config.model.precision, device_type, "model.dtype", adapter=adapter)
    except ValueError as error:
        if begun == config.model.precision:
            way_out = f"the run in {config.output_dir} began in it: it goes on where it began, on a CPU"
            raise ConfigError(f"{str(error).partition(': ')[0]}, and {way_out}") from error
        raise ConfigError(f"{error}; method=full has no adapter to serve") from error
    return config


def settle_share(
    config: Config, meta_model: nn.Module, ranks: int, gpu_gib: float, free_gib: float | None = None
) -> Config:
    """The configuration with values for `auto` in `rollout.memory_fraction` and `rollout.sleep`, on cards of that size.

    Awake the sampler keeps its share while the learner works, which is what it is for as long as the estimate finds
    room for the learner and, beside it, for the weights and for keys and values of all that is sampled side by side at
    its longest. Asleep it has what the learner leaves while it does not work.

    Args:
        config: The run's.
        meta_model: See `rl_engine.policy.base_model.load_meta_model`.
        ranks: Processes that share what ZeRO shards, and the groups.
        gpu_gib: Memory of a card, all of it.
        free_gib: What of it is free before anything is loaded; all of it when absent.
    """
    rollout = config.rollout
    share, sleep = rollout.memory_fraction, rollout.sleep
    if rollout.placement == "ray":
        # Workers have cards of their own, and never sleep.
        share = WHOLE_CARD if share == "auto" else share
        return config.model_copy(update={"rollout": rollout.model_copy(update={"memory_fraction": share})})
    learner = Memory(parts=tuple(learner_parts(config, meta_model, ranks, gpu_gib)))
    usable = (gpu_gib if free_gib is None else min(gpu_gib, free_gib)) - MARGIN * gpu_gib
    beside = usable - max(learner.needed(phase) for phase in PHASES)
    alone = usable - max(learner.needed(phase) for phase in ("rollout", "sync"))
    least, wanted = _sampler_gib(config, meta_model, ranks)
    if sleep == "auto":
        sleep = (wanted if share == "auto" else share * gpu_gib) > beside
    if share == "auto":
        # Where that is less than the sampler cannot do without, the check of the memory says so, and what would help.
        decided = max(min(WHOLE_CARD, (alone if sleep else beside) / gpu_gib), min(1.0, least / gpu_gib))
        share = math.floor(decided * 100) / 100 or 0.01
    return config.model_copy(update={"rollout": rollout.model_copy(update={"memory_fraction": share, "sleep": sleep})})


def _sampler_gib(config: Config, meta_model: nn.Module, ranks: int) -> tuple[float, float]:
    """(what an engine needs for one sequence, what it can use), GiB of each of its cards."""
    size = DTYPES[config.model.precision].itemsize
    cards = config.rollout.tensor_parallel_size
    weights = sum(parameter.numel() for parameter in meta_model.parameters()) * size
    longest = config.data.max_prompt_tokens + config.sampling.max_tokens
    sequence = Widths.of(meta_model).sequence_bytes(longest, size)
    groups = math.ceil(config.train.problems_per_step / ranks)
    rows = min(config.rollout.max_num_seqs, groups * config.sampling.n)
    return tuple((weights + count * sequence) / cards / GIB + ENGINE_GIB for count in (1, rows))  # type: ignore[return-value]


def settle_card(config: Config, ranks: Ranks) -> Config:
    """`settle_on_card`, the same on every rank: each asks its own card, and all are to run one configuration."""
    return ranks.broadcast(settle_on_card(config, ranks))


def settle_on_card(config: Config, ranks: Ranks) -> Config:
    """`settle_share` for this rank's card; on a CPU there is none to share.

    Raises `ValueError` for a card that does not compute in the run's precision.
    """
    if ranks.device.type != "cuda":
        return config
    check_computes(config.model.precision, "model.dtype")
    gpu_gib = torch.cuda.get_device_properties(ranks.device).total_memory / GIB
    return settle_share(
        config, load_meta_model(config.model), ranks.count, gpu_gib, free_gib=available(ranks).device_gib
    )


def sampler_line(config: Config) -> str:
    """What the sampler has of the card, for people; for a configuration that is settled."""
    rollout = config.rollout
    share = f"{rollout.card_share:.0%} of "
    if rollout.placement == "ray":
        return share + "a card of its own for each worker"
    state = "asleep" if rollout.sleep else "awake"
    return f"{share}the card, {state} while the learner works"
