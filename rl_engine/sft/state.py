"""A supervised run ↔ the state needed to resume it: trained values and Adam's moments."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_engine.config.sft import SftConfig
from rl_engine.learner.adam import steps_taken
from rl_engine.run.checkpoint import Checkpoints, RunState, restore_rng
from rl_engine.run.resumption import check_resumable, planned_length
from rl_engine.sft.model import TrainableModel

MOMENTS = ("exp_avg", "exp_avg_sq")
COUNT = "adam_steps"


def save(
    config: SftConfig,
    trainable: TrainableModel,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    step: int,
    steps: int,
    config_hash: str,
    unrecorded: dict[str, float] | None,
) -> None:
    """Save a checkpoint after a step of `steps`; see `RunState.unrecorded`."""
    tensors = {f"value.{name}": value for name, value in trainable.values().items()}
    count = 0  # skipped updates do not count
    for name, parameter in trainable.parameters.items():
        # Parameters that no update has touched have no state, such as a vision tower in full fine-tuning.
        if adams := optimizer.state.get(parameter):
            tensors |= {f"{moment}.{name}": adams[moment].cpu().clone() for moment in MOMENTS}
            count = int(adams["step"])
    tensors[COUNT] = torch.tensor(count)
    state = RunState(
        step=step,
        position=step * config.train.batch_size,
        version=0,
        config_hash=config_hash,
        planned_steps=planned_length(config, steps),
        unrecorded=unrecorded,
    )
    checkpoints.save(state, tensors)


def restore(
    config: SftConfig,
    trainable: TrainableModel,
    optimizer: torch.optim.Optimizer,
    saved: tuple[RunState, dict[str, Tensor]],
    config_hash: str,
) -> None:
    """Restore a checkpoint. Raises `ConfigError` if it belongs to a different run."""
    state, tensors = saved
    check_resumable(state.config_hash, config, config_hash, state.step)
    restore_rng(tensors)
    # Checkpoints of earlier versions have no count; for them it equals the number of steps.
    count = int(tensors.get(COUNT, state.step))
    for name, parameter in trainable.parameters.items():
        _put(parameter, tensors[f"value.{name}"])
        moments = {moment: tensors.get(f"{moment}.{name}") for moment in MOMENTS}
        kept = {moment: value.to(parameter.device) for moment, value in moments.items() if value is not None}
        if kept:
            optimizer.state[parameter] = {"step": steps_taken(optimizer, parameter, count), **kept}


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
