"""Trained parameters → AdamW, set up to step as fast as it can where its moments are: in one fused kernel on a GPU, or
on all threads of the host when they are offloaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from evals.launch.limits import usable_cores
from rl_engine.config.optim import OptimConfig


def adam(
    groups: Iterable[tuple[float, Any]], config: OptimConfig, device_type: str, *, offloaded: bool = False
) -> torch.optim.AdamW:
    """AdamW over groups of (learning-rate multiplier, parameters), for a run on `cpu` or `cuda`.

    `offloaded`: a CUDA run that keeps its moments in host memory and steps there. The fused kernel is used in both
    places. A run that is on the CPU throughout does not use it: it rounds differently (the last bit of one value in
    thousands), and CPU runs are kept bit-identical.
    """
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": factor * config.rate} for factor, group in groups],
        lr=config.rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device_type == "cuda",
    )
    if device_type == "cuda" and offloaded:
        _step_on_threads(optimizer, cores_of_rank())
    return optimizer


def cores_of_rank() -> int:
    """This rank's share of the machine's cores, regardless of the number of threads that torchrun or vLLM set."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _step_on_threads(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Make the optimizer step on `count` threads: vLLM, running in the same process, would leave it only one."""
    before = count

    def give(*_: Any) -> None:
        nonlocal before
        before = torch.get_num_threads()
        torch.set_num_threads(count)

    def take(*_: Any) -> None:
        torch.set_num_threads(before)

    optimizer.register_step_pre_hook(give)
    optimizer.register_step_post_hook(take)


def steps_taken(optimizer: torch.optim.Optimizer, parameter: Tensor, count: int) -> Tensor:
    """Adam's step count for a parameter's state: fused Adam needs it on the parameter's device, others on the host."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(count), device=parameter.device if fused else "cpu")
