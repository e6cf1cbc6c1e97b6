"""A supervised run ↔ the state needed to resume it: trained values and Adam's moments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rl_engine.learner.adam import steps_taken
from rl_engine.learner.state import COUNT, MOMENTS
from rl_engine.policy.trainable import TrainablePolicy
from rl_engine.run.checkpoint import RNG


def values_of(trainable: TrainablePolicy) -> dict[str, Tensor]:
    """Copies of the trained values, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in trainable.parameters.items()}


def tensors_of(trainable: TrainablePolicy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies, on the CPU, of the trained values, Adam's moments and the number of updates made."""
    tensors = {f"value.{name}": value for name, value in values_of(trainable).items()}
    count = 0  # skipped updates do not count
    for name, parameter in trainable.parameters.items():
        # Parameters that no update has touched have no state, such as a vision tower in full fine-tuning.
        if adams := optimizer.state.get(parameter):
            tensors |= {f"{moment}.{name}": adams[moment].cpu().clone() for moment in MOMENTS}
            count = int(adams["step"])
    return {**tensors, COUNT: torch.tensor(count)}


@torch.no_grad()
def restore(
    trainable: TrainablePolicy, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], step: int
) -> None:
    """Restore the state after `step`, and torch's random state."""
    torch.set_rng_state(tensors[RNG])
    # Checkpoints of earlier versions have no count; for them it equals the number of steps.
    count = int(tensors.get(COUNT, step))
    for name, parameter in trainable.parameters.items():
        parameter.copy_(tensors[f"value.{name}"])
        moments = {moment: tensors.get(f"{moment}.{name}") for moment in MOMENTS}
        kept = {moment: value.to(parameter.device) for moment, value in moments.items() if value is not None}
        if kept:
            optimizer.state[parameter] = {"step": steps_taken(optimizer, parameter, count), **kept}
