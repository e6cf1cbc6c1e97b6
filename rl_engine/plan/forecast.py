"""Configuration and model → what the run needs and warnings about it, as lines for the console."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rl_engine.config import Config
from rl_engine.plan.capacity import (
    BITS_PER_PARAMETER,
    Capacity,
    capacity_of,
    parameters_by_group,
    reinforcement_bits,
)
from rl_engine.plan.flops import StepFlops, step_flops
from rl_engine.plan.learning_rate import Rate, rate_of_run
from rl_engine.plan.sizes import Workload
from rl_engine.plan.warnings import PlannedRun, warnings_of
from rl_engine.policy.lora.targets import layers_below_rank
from rollout.servable import context_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is known about a run before it starts, from its configuration and the model's."""

    config: Config
    meta_model: nn.Module
    """The model on the meta device: sizes without weights."""
    work: Workload
    total: int
    """Parameters of the model."""
    groups: dict[str, int]
    """Trainable parameters by kind of layer."""
    capacity: Capacity
    rule: Rate | None
    """The rate that `auto` would give; None if no rule is known."""
    rate: float
    """The run's own learning rate."""
    lora: StepFlops
    full: StepFlops
    """The same step with full fine-tuning."""
    warnings: dict[str, str]

    def capacity_for(self, information_bits: float) -> Capacity:
        """The capacity of the same parameters for another amount of information."""
        return capacity_of(self.meta_model, self.config.lora, self.config.method, information_bits)

    @property
    def flops(self) -> StepFlops:
        """The operations of a step with the run's own method."""
        return self.lora if self.config.method == "lora" else self.full


def forecast(
    config: Config,
    meta_model: nn.Module,
    *,
    device_type: str,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Forecast:
    """Everything except memory (`memory.py`) and time (`step_time.py`).

    Args:
        config: The run's configuration.
        meta_model: See `rl_engine.policy.base_model.load_meta_model`.
        device_type: `cpu` or `cuda`, which lay out micro-batches differently.
        prompt_tokens: Mean length of prompts; the longest allowed if absent.
        completion_tokens: Mean length of completions; the longest allowed if absent.
    """
    text_config = meta_model.config.get_text_config()  # type: ignore[operator, union-attr]
    work = Workload.of(config, prompt_tokens, completion_tokens)
    groups = parameters_by_group(config, meta_model)
    capacity = capacity_of(meta_model, config.lora, config.method, reinforcement_bits(work))
    rule = None if config.method == "lora" and config.lora.is_tiny else rate_of_run(config, meta_model.config)
    rate = rule.value if rule is not None and config.optim.lr == "auto" else config.optim.rate
    return Forecast(
        config=config,
        meta_model=meta_model,
        work=work,
        total=sum(parameter.numel() for parameter in meta_model.parameters()),
        groups=groups,
        capacity=capacity,
        rule=rule,
        rate=rate,
        lora=step_flops(config, meta_model, work, method="lora", device_type=device_type),
        full=step_flops(config, meta_model, work, method="full", device_type=device_type),
        warnings=warnings_of(
            PlannedRun(
                config=config,
                rate=rate,
                hidden=text_config.hidden_size,
                context=context_length(text_config),
                groups=frozenset(groups),
                capacity=capacity,
                below_rank=layers_below_rank(meta_model, config.lora) if config.method == "lora" else {},
            )
        ),
    )


def first_lines(config: Config, meta_model: nn.Module) -> dict[str, str]:
    """What a run prints before its first step, besides its trainable parameters: capacity, compute, warnings."""
    made = forecast(config, meta_model, device_type="cuda" if torch.cuda.is_available() else "cpu")
    return {name: text for name, text in lines_of(made).items() if name != "parameters"}


def lines_of(made: Forecast) -> dict[str, str]:
    """Names and values of the forecast's lines, including one line for each warning."""
    return {
        "parameters": _parameters(made),
        "capacity": _capacity(made),
        "compute": _compute(made),
        **{f"beware: {name}": text for name, text in made.warnings.items()},
    }


def _parameters(made: Forecast) -> str:
    learning = sum(made.groups.values())
    groups = ", ".join(f"{name} {count:,}" for name, count in made.groups.items())
    return f"{learning:,} of {made.total:,} trained ({learning / made.total:.3%}): {groups}"


def _capacity(made: Forecast) -> str:
    work = made.work
    return (
        f"{made.capacity.bits:,} bits, {BITS_PER_PARAMETER} per parameter; the run teaches at most "
        f"{made.capacity.information_bits:,.0f}, 1 per episode ({work.steps} × {work.groups} × {work.completions}): "
        f"{describe_capacity(made.capacity, made.config)}"
    )


def describe_capacity(capacity: Capacity, config: Config) -> str:
    """The share of the capacity that is needed, and the rank that would be enough."""
    if config.method == "full":
        return f"{capacity.share:.2%}"
    plain = "a plain adapter of " if config.lora.is_tiny else ""
    enough = f"{plain}rank {capacity.rank} holds it" if capacity.rank else "no rank up to 512 does"
    return f"{capacity.share:.2%}; {enough}"


def _compute(made: Forecast) -> str:
    flops = made.flops
    recomputed = f", {flops.recomputed:.2e} in recomputed passes" if flops.recomputed else ""
    lora, full = made.lora.learning, made.full.learning
    return (
        f"{flops.total:.2e} FLOP per step: {flops.sampling:.2e} sampling, "
        f"{flops.learning:.2e} learning{recomputed}; learning takes {lora:.2e} with LoRA and {full:.2e} with every "
        f"weight: {lora / full:.3f}"
    )
