"""A supervised run ↔ what it takes to resume it: what is trained, and Adam's moments."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_engine.config.sft import SftConfig
from rl_engine.learner.adam import steps_taken
from rl_engine.run.checkpoint import Checkpoints, RunState, restore_rng
from rl_engine.run.resumption import check_resumable
from rl_engine.sft.model import TrainableModel

MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    config: SftConfig,
    trainable: TrainableModel,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    step: int,
    config_hash: str,
    unrecorded: dict[str, float] | None,
) -> None:
    """Save a checkpoint after a step; see `RunState.unrecorded`."""
    tensors = {f"value.{name}": value for name, value in trainable.values().items()}
    for name, parameter in trainable.parameters.items():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().clone()
    state = RunState(
        step=step,
        position=step * config.train.batch_size,
        version=0,
        config_hash=config_hash,
        unrecorded=unrecorded,
    )
    checkpoints.save(state, tensors)


def restore(
    config: SftConfig,
    trainable: TrainableModel,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    config_hash: str,
) -> RunState | None:
    """Put back the newest checkpoint; returns where it stands, None where there is none."""
    found = checkpoints.newest()
    if found is None:
        return None
    state, tensors = found
    check_resumable(state.config_hash, config, config_hash, state.step)
    restore_rng(tensors)
    for name, parameter in trainable.parameters.items():
        _put(parameter, tensors[f"value.{name}"])
        optimizer.state[parameter] = {
            "step": steps_taken(optimizer, parameter, state.step),
            **{moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS},
        }
    return state


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
