"""Learner ↔ its state for a resumed run: trained parameters, Adam's moments and step count, as plain tensors.

The tensors are unsharded, whatever the ZeRO stage and number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_engine.learner.learner import Learner

MOMENTS = ("exp_avg", "exp_avg_sq")
COUNT = "adam_steps"


def learner_state(learner: Learner) -> dict[str, Tensor]:
    """Every tensor a resumed run needs, on the CPU. Collective: all ranks call it; only rank 0 gets the tensors."""
    state = {f"adapter.{name}": tensor for name, tensor in learner.weights().items()}
    for name, parameter in learner.parameters.items():
        for moment in MOMENTS:
            value = _moment(learner, parameter, moment)
            if learner.ranks.is_main:
                state[f"{moment}.{name}"] = (
                    torch.zeros_like(state[f"adapter.{name}"])
                    if value is None
                    else value.detach().float().cpu().clone()
                )
    state[COUNT] = torch.tensor(_count(learner), dtype=torch.int64)
    return state


def restore_learner(learner: Learner, state: dict[str, Tensor]) -> None:
    """Restore a saved state. Collective: all ranks call it with the same state."""
    expected = {f"adapter.{name}": p for name, p in learner.parameters.items()}
    for name, parameter in expected.items():
        here, there = _numel(parameter), state[name].numel() if name in state else 0
        if here != there:
            raise ValueError(
                f"the checkpoint does not fit this run: {name} has {there:,} values there and {here:,} here; resume "
                "with the model, lora.targets and lora.rank that it was written with"
            )
    count = int(state[COUNT])
    if count:
        learner.prime()
    _set_parameters(learner, state)
    if count:
        for name, parameter in learner.parameters.items():
            for moment in MOMENTS:
                _set_moment(learner, parameter, moment, state[f"{moment}.{name}"])
    _set_count(learner, count)


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _sharded(learner: Learner) -> bool:
    return learner.config.learner.zero_stage > 0


def _moment(learner: Learner, parameter: Any, moment: str) -> Tensor | None:
    if not _sharded(learner):
        value: Tensor | None = learner.optimizer.state.get(parameter, {}).get(moment)
        return value
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, moment)  # type: ignore[no-any-return]


def _set_moment(learner: Learner, parameter: Any, moment: str, value: Tensor) -> None:
    value = value.to(parameter.device)
    if not _sharded(learner):
        learner.optimizer.state[parameter][moment].copy_(value)
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    safe_set_full_optimizer_state(parameter, value, moment)


def _set_parameters(learner: Learner, state: dict[str, Tensor]) -> None:
    """Set both copies if DeepSpeed keeps two: the one the forward pass reads, and the one the optimizer steps on."""
    for name, parameter in learner.parameters.items():
        with learner.whole(parameter, modify=True), torch.no_grad():
            parameter.copy_(state[f"adapter.{name}"])
    if _sharded(learner):
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in learner.parameters.items():
            safe_set_full_fp32_param(parameter, state[f"adapter.{name}"].to(learner.ranks.device))


def _adam_states(learner: Learner) -> list[dict[str, Any]]:
    """The optimizer's own state dictionaries: per parameter, or per flat shard that DeepSpeed made of them."""
    return [state for state in learner.optimizer.state.values() if state]


def _count(learner: Learner) -> int:
    """Adam's number of steps: the exponent of its bias correction."""
    return max((int(state["step"]) for state in _adam_states(learner)), default=0)


def _set_count(learner: Learner, count: int) -> None:
    for state in _adam_states(learner):
        # In place: a fused optimizer on a GPU needs the count to stay on the GPU.
        state["step"].fill_(float(count))
