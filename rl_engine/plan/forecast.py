"""Configuration and model → what the run needs: parameters, capacity, learning rate, compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rl_engine.config import Config
from rl_engine.plan.capacity import Capacity, capacity_of, parameters_by_group, reinforcement_bits
from rl_engine.plan.flops import StepFlops, step_flops
from rl_engine.plan.learning_rate import Rate, rate_of_run
from rl_engine.plan.sizes import Workload


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

    @property
    def is_lora(self) -> bool:
        return self.config.method == "lora"

    @property
    def text_config(self) -> Any:
        """The configuration of the language model."""
        return self.meta_model.config.get_text_config()  # type: ignore[operator, union-attr]

    @property
    def flops(self) -> StepFlops:
        """The operations of a step with the run's own method."""
        return self.lora if self.is_lora else self.full


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
    )
