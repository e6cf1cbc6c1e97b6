"""The tensors that a policy computes on at once. The legend of shapes is in `rl_engine/learner/advantages.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_engine.policy.attention import SharedPrompts


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of B samples, completions C wide, N completion tokens in all.

    `padded`: each sample is a row of T positions. `packed`: one row holds them all end to end, told apart by positions
    that begin again at zero. `shared_prompt`: one row holds every prompt once, and then every completion.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    """Where tokens are rather than padding; None where there is no padding."""
    position_ids_BT: Tensor | None
    """Each token's place in its sample, where samples share a row."""
    layout: SharedPrompts | None
    """What the row is made of, where prompts are shared."""
    source_N: Tensor
    """Flat index into [B·T] of the position whose hidden state predicts the token."""
    target_N: Tensor
    """The token that was sampled there."""
    mask_BC: Tensor
    behaviour_logprob_BC: Tensor
    old_logprob_BC: Tensor | None
    advantage_B: Tensor
    weight_B: Tensor

    def model_inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids_BT,
            "attention_mask": self.attention_mask_BT,
            "position_ids": self.position_ids_BT,
        }
        return inputs if self.layout is None else {**inputs, "layout": self.layout}

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def spread(self, values_N: Tensor) -> Tensor:
        """[N] values of the completion tokens → [B, C], zero where there is no token."""
        zeros_BC = torch.zeros(self.mask_BC.shape, dtype=values_N.dtype, device=values_N.device)
        return zeros_BC.masked_scatter(self.mask_BC, values_N)
