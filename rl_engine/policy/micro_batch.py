"""The tensors of one forward pass of a policy. The legend of shapes is in `rl_engine/learner/advantages.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_engine.policy.attention import SHARED_PROMPT, VARLEN, PackedRows, SharedPrompts, sees_padding


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of B samples: completions are padded to width C and have N tokens in total.

    `padded`: each sample is a row of T positions. `packed`: one row holds all samples end to end, separated by position
    ids that restart at zero. `shared_prompt`: one row holds every prompt once, followed by every completion, each
    padded to the longest. `packed_shared`: every prompt once and every completion, without padding.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    """1 for tokens, 0 for padding; None if there is no padding."""
    position_ids_BT: Tensor | None
    """Each token's position in its sample, if samples share a row."""
    layout: SharedPrompts | PackedRows | None
    """How the row is composed, if samples share one."""
    source_N: Tensor
    """Flat index into [B·T] of the position whose hidden state predicts the token."""
    target_N: Tensor
    """The sampled token."""
    mask_BC: Tensor
    place_N: Tensor
    """Flat index into [B·C] of each token: the true positions of the mask, in order. Indexing with the mask itself
    would synchronize with the GPU, to count them."""
    behaviour_logprob_BC: Tensor
    old_logprob_BC: Tensor | None
    advantage_B: Tensor
    weight_B: Tensor

    def model_inputs(self, model_config: Any) -> dict[str, Any]:
        """The keyword arguments for calling a model with this configuration."""
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids_BT,
            "attention_mask": self.attention_mask_BT if sees_padding(model_config) else None,
            "position_ids": self.position_ids_BT,
        }
        # transformers' own attention separates samples by the restarting position ids.
        reads_layout = model_config._attn_implementation in (SHARED_PROMPT, VARLEN)
        return {**inputs, "layout": self.layout} if reads_layout else inputs

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{name: _moved(tensor, device) for name, tensor in tensors.items() if tensor is not None})

    def spread(self, values_N: Tensor) -> Tensor:
        """[N] values of the completion tokens → [B, C], zero at padding."""
        zeros = torch.zeros(self.mask_BC.numel(), dtype=values_N.dtype, device=values_N.device)
        return zeros.index_copy(0, self.place_N, values_N).view(self.mask_BC.shape)

    def tokens_of(self, values_BC: Tensor) -> Tensor:
        """[B, C] values → [N] values of the completion tokens."""
        return values_BC.flatten().index_select(0, self.place_N)


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor or layout on `device`. From pinned memory the copy to a GPU is asynchronous; an ordinary copy would wait
    for all work queued on the GPU before it."""
    if device.type == "cuda" and isinstance(value, Tensor) and not value.is_cuda:
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
