"""The tensors that a policy computes on at once. The legend of shapes is in `rl_engine/learner/advantages.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_engine.policy.attention import NAME, VARLEN, PackedRows, SharedPrompts, sees_padding


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of B samples, completions C wide, N completion tokens in all.

    `padded`: each sample is a row of T positions. `packed`: one row holds them all end to end, told apart by positions
    that begin again at zero. `shared_prompt`: one row holds every prompt once, and then every completion, each padded
    like the longest; `packed_shared`: the same without padding.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    """Where tokens are rather than padding; None where there is no padding."""
    position_ids_BT: Tensor | None
    """Each token's place in its sample, where samples share a row."""
    layout: SharedPrompts | PackedRows | None
    """What the row is made of, where samples share one."""
    source_N: Tensor
    """Flat index into [B·T] of the position whose hidden state predicts the token."""
    target_N: Tensor
    """The token that was sampled there."""
    mask_BC: Tensor
    place_N: Tensor
    """Flat index into [B·C] of each token: where the mask is true, in order. A GPU that is given a mask instead has to
    be waited for, to learn how many there are."""
    behaviour_logprob_BC: Tensor
    old_logprob_BC: Tensor | None
    advantage_B: Tensor
    weight_B: Tensor

    def model_inputs(self, model_config: Any) -> dict[str, Any]:
        """What a model of that configuration is called with."""
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids_BT,
            "attention_mask": self.attention_mask_BT if sees_padding(model_config) else None,
            "position_ids": self.position_ids_BT,
        }
        # An attention of transformers' own tells samples apart by positions that begin again.
        reads_layout = model_config._attn_implementation in (NAME, VARLEN)
        return {**inputs, "layout": self.layout} if reads_layout else inputs

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{name: _moved(tensor, device) for name, tensor in tensors.items() if tensor is not None})

    def spread(self, values_N: Tensor) -> Tensor:
        """[N] values of the completion tokens → [B, C], zero where there is no token."""
        zeros = torch.zeros(self.mask_BC.numel(), dtype=values_N.dtype, device=values_N.device)
        return zeros.index_copy(0, self.place_N, values_N).view(self.mask_BC.shape)

    def tokens_of(self, values_BC: Tensor) -> Tensor:
        """[B, C] values → [N], those of the completion tokens."""
        return values_BC.flatten().index_select(0, self.place_N)


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor or a layout on that device. From pinned memory a GPU fetches it in its own time: an ordinary copy waits
    until all is done that was asked of the card before."""
    if device.type == "cuda" and isinstance(value, Tensor) and not value.is_cuda:
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
