"""The `optim:` section: Adam, its learning rate, and the schedule over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from rollout.config import Section

# Fraction of the steps done → factor on the learning rate. No schedule reaches 0 before the last step.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


class OptimConfig(Section):
    lr: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        description="Adam's learning rate. auto: chosen by rule (docs/choosing.md) and printed with its derivation; a "
        "resumed run keeps its original value."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="Adam's decay rates for the first and second moment."
    )
    eps: float = Field(
        1e-12,
        gt=0,
        description="Adam's epsilon: far below any gradient, so that a constant factor in the loss does not matter.",
    )
    clip_norm: float = Field(0.0, ge=0, description="Maximum gradient norm; 0 disables clipping.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay of every trained parameter.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning-rate schedule over the run's steps; linear and cosine fall to 0 after the last.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate first rises from 0.")

    @property
    def rate(self) -> float:
        """`lr` as a number: a run resolves auto before anything else (`rl_engine/plan/card.py`)."""
        assert self.lr != "auto", "the rate has not been decided"
        return self.lr

    def rate_factor(self, steps: int, done: int) -> float:
        """The factor on the learning rate in the step after `done` of `steps`. It depends on these only, so that a
        resumed run continues the schedule."""
        warm = min(1.0, (done + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * SCHEDULES[self.schedule](done / steps)

    def describe(self) -> str:
        """Adam, its learning rate, and what else was set, as text for the user."""
        extras = [f"{self.schedule} rate {self.rate:g}"]
        if self.warmup_steps:
            extras.append(f"{self.warmup_steps} warm-up steps")
        if self.weight_decay:
            extras.append(f"weight decay {self.weight_decay:g}")
        if self.clip_norm:
            extras.append(f"gradients clipped at {self.clip_norm:g}")
        return ", ".join([f"Adam {self.betas[0]:g}/{self.betas[1]:g}", *extras])
