"""What learns → Adam, as it steps fastest where its state is: in one kernel on a card, on all threads of a host beside
one."""

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
    """AdamW on groups of (what multiplies the rate, parameters), for a run on `cpu` or `cuda`.

    `offloaded`: a run on CUDA whose moments are in host memory, and which steps there. The fused kernel serves both
    places. On a run that is a CPU's from start to end it is not used: it rounds otherwise (a last bit of one value in
    thousands), and what such runs compute is kept to the bit.
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
    """This process's share of the machine's processors, whatever number of threads torchrun or vLLM set."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _step_on_threads(optimizer: torch.optim.Optimizer, count: int) -> None:
    """Have the optimizer step on so many threads: vLLM, whose engine is in the same process, leaves it one."""
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
    """Adam's count for a parameter's state: a fused one wants it beside the parameter, the others on the host."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.tensor(float(count), device=parameter.device if fused else "cpu")
