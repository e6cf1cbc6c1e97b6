"""A forecast or a memory estimate → lines for the console: names and values."""

from __future__ import annotations

import torch
from torch import nn

from rl_engine.config import Config
from rl_engine.plan.capacity import BITS_PER_PARAMETER, Capacity
from rl_engine.plan.forecast import Forecast, forecast
from rl_engine.plan.memory import PHASES, Memory
from rl_engine.plan.warnings import warnings_of
from rl_engine.run.memory import Available


def first_lines(config: Config, meta_model: nn.Module) -> dict[str, str]:
    """What a run prints before its first step, besides its trainable parameters: capacity, compute, warnings."""
    made = forecast(config, meta_model, device_type="cuda" if torch.cuda.is_available() else "cpu")
    return {name: text for name, text in lines_of(made).items() if name != "parameters"}


def lines_of(made: Forecast) -> dict[str, str]:
    """The lines of a forecast, including one for each warning."""
    return {
        "parameters": _parameters(made),
        "capacity": _capacity(made),
        "compute": _compute(made),
        **{f"beware: {name}": text for name, text in warnings_of(made).items()},
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


def memory_lines(memory: Memory, available: Available) -> dict[str, str]:
    """Every phase against what is available, then every part of at least a MiB."""
    lines = {}
    for phase in PHASES:
        text = f"{memory.needed(phase):.2f} GiB of {available.device_gib:.2f} available"
        host = memory.needed(phase, on_host=True)
        if host:
            text += f"; {host:.2f} GiB of the host's {available.host_gib:.2f}"
        lines[f"memory, {phase}"] = text
    parts = [part for part in memory.parts if part.gib >= 0.001]
    for part in sorted(parts, key=lambda part: -part.gib):
        where = ", on the machine" if part.on_host else ""
        lines[f"  {part.name}"] = f"{part.gib:.3f} GiB ({', '.join(part.phases)}{where})"
    return lines
