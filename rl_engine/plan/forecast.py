"""Configuration and a model's shape → what the run asks for and what to beware of, in lines for people."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rl_engine.config import Config
from rl_engine.plan.budget import (
    BITS_PER_PARAMETER,
    Capacity,
    StepFlops,
    Workload,
    capacity_of,
    parameters_by_group,
    reinforcement,
    step_flops,
)
from rl_engine.plan.learning_rate import Method, Rate, chosen_rate, rate_of_run
from rl_engine.plan.warnings import Facts, warnings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What can be said of a run before it runs, from its configuration and its model's shape."""

    config: Config
    shape: nn.Module
    """On the meta device."""
    work: Workload
    total: int
    """Parameters of the model."""
    groups: dict[str, int]
    """Parameters that learn, by kind of layer."""
    capacity: Capacity
    rule: Rate
    rate: float
    """The run's own."""
    lora: StepFlops
    full: StepFlops
    """The same step with every weight learning."""
    warnings: dict[str, str]

    def capacity_for(self, taught: float) -> Capacity:
        """The same adapter against other information, in bits."""
        return capacity_of(self.shape, self.config.lora, self.config.method, taught)

    @property
    def flops(self) -> StepFlops:
        return self.lora if self.config.method == "lora" else self.full


def forecast(
    config: Config,
    shape: nn.Module,
    *,
    device: str,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Forecast:
    """Everything but memory and time.

    Args:
        config: The run's.
        shape: See `rl_engine.policy.base_model.meta_model`.
        device: `cpu` or `cuda`, which lay out micro-batches differently.
        prompt_tokens: Mean length; the longest allowed when absent.
        completion_tokens: The same of completions.
    """
    facts = shape.config.get_text_config()  # type: ignore[operator, union-attr]
    work = reinforcement(config, prompt_tokens, completion_tokens)
    groups = parameters_by_group(config, shape)
    capacity = capacity_of(shape, config.lora, config.method, work.bits)
    rule = rate_of_run(config, shape.config)
    rate = chosen_rate(config.optim.lr, rule)
    return Forecast(
        config=config,
        shape=shape,
        work=work,
        total=sum(parameter.numel() for parameter in shape.parameters()),
        groups=groups,
        capacity=capacity,
        rule=rule,
        rate=rate,
        lora=step_flops(config, shape, work, method="lora", device=device),
        full=step_flops(config, shape, work, method="full", device=device),
        warnings=warnings_of(
            Facts(
                config=config,
                rate=rate,
                hidden=facts.hidden_size,
                context=facts.max_position_embeddings,
                groups=frozenset(groups),
                capacity=capacity,
            )
        ),
    )


def first_lines(config: Config, shape: nn.Module) -> dict[str, str]:
    """What a run prints before its first step, beside the parameters that learn: capacity, compute, warnings."""
    made = forecast(config, shape, device="cuda" if torch.cuda.is_available() else "cpu")
    return {name: text for name, text in lines_of(made).items() if name != "parameters"}


def lines_of(made: Forecast) -> dict[str, str]:
    """Name and value; one line a warning."""
    return {
        "parameters": _parameters(made),
        "capacity": _capacity(made),
        "compute": _compute(made),
        **{f"beware: {name}": text for name, text in made.warnings.items()},
    }


def _parameters(made: Forecast) -> str:
    learning = sum(made.groups.values())
    groups = ", ".join(f"{name} {count:,}" for name, count in made.groups.items())
    return f"{learning:,} of {made.total:,} learn ({learning / made.total:.3%}): {groups}"


def _capacity(made: Forecast) -> str:
    work = made.work
    return (
        f"{made.capacity.bits:,} bits, {BITS_PER_PARAMETER} a parameter; the run teaches at most "
        f"{made.capacity.taught:,.0f}, 1 an episode ({work.steps} × {work.groups} × {work.completions}): "
        f"{describe_capacity(made.capacity, made.config.method)}"
    )


def describe_capacity(capacity: Capacity, method: Method) -> str:
    """The share that is asked for, and the rank that would do."""
    if method == "full":
        return f"{capacity.share:.2%}"
    return f"{capacity.share:.2%}; " + (f"rank {capacity.rank} holds it" if capacity.rank else "no rank up to 512 does")


def _compute(made: Forecast) -> str:
    flops = made.flops
    again = f", {flops.again:.2e} in passes made again" if flops.again else ""
    lora, full = made.lora.learning, made.full.learning
    return (
        f"a step {flops.sampling + flops.learning + flops.again:.2e} FLOP: {flops.sampling:.2e} sampling, "
        f"{flops.learning:.2e} learning{again}; learning takes {lora:.2e} with LoRA and {full:.2e} with every weight: "
        f"{lora / full:.3f}"
    )
