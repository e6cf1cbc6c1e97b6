"""Configuration and model → the trainable parameters, and the bits they can hold against those a run can teach."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from torch import nn

from rl_engine.config import Config, LoraConfig, Method
from rl_engine.plan.sizes import Workload
from rl_engine.policy.lora.targets import coverage_of, group_of

# LoRA Without Regret: LoRA stores about two bits per parameter; a policy gradient learns about one bit per episode.
BITS_PER_PARAMETER = 2
BITS_PER_EPISODE = 1
RANKS = range(1, 513)


def parameters_by_group(config: Config, meta_model: nn.Module) -> dict[str, int]:
    """Trainable parameters by kind of layer."""
    if config.method == "lora":
        return coverage_of(meta_model, config.lora).by_group
    groups: dict[str, int] = {}
    for name, parameter in meta_model.named_parameters():
        groups[group_of(name)] = groups.get(group_of(name), 0) + parameter.numel()
    return groups


def trainable_parameters(config: Config, meta_model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameters_by_group(config, meta_model).values())


def kept_values(config: Config, meta_model: nn.Module) -> tuple[int, int]:
    """(number of values in a published version, number of values kept besides the trained ones)."""
    if config.method == "lora":
        coverage = coverage_of(meta_model, config.lora)
        return coverage.published, coverage.fixed
    return trainable_parameters(config, meta_model), 0


def reinforcement_bits(work: Workload) -> int:
    """Upper bound on what a whole run of reinforcement learning can teach; groups without signal teach nothing."""
    return BITS_PER_EPISODE * work.steps * work.episodes


def supervised_bits(tokens: int, loss_nats: float) -> float:
    """What supervised tokens, each counted once, can teach: their log loss, which in the first epoch is about 0.69
    nats, or one bit, per token."""
    return tokens * loss_nats / math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the trained parameters can hold, compared with the information in the training, in bits."""

    bits: int
    information_bits: float
    rank: int | None
    """The smallest rank of a plain adapter that holds it all; None if none does, or with full fine-tuning."""

    @property
    def share(self) -> float:
        """Information over capacity."""
        return self.information_bits / self.bits


def capacity_of(meta_model: nn.Module, lora: LoraConfig, method: Method, information_bits: float) -> Capacity:
    """The capacity at two bits per trained parameter, and the smallest rank that holds the information."""

    def bits(rank: int) -> int:
        # With a few shared numbers the rank adds no capacity, so report the rank of a plain adapter.
        plain = lora.model_copy(update={"rank": rank, "init": "default"})
        return BITS_PER_PARAMETER * coverage_of(meta_model, plain).trainable

    if method == "full":
        trainable = sum(parameter.numel() for parameter in meta_model.parameters())
        return Capacity(bits=BITS_PER_PARAMETER * trainable, information_bits=information_bits, rank=None)
    index = bisect_left(RANKS, information_bits, key=bits)
    return Capacity(
        bits=BITS_PER_PARAMETER * coverage_of(meta_model, lora).trainable,
        information_bits=information_bits,
        rank=RANKS[index] if index < len(RANKS) else None,
    )
