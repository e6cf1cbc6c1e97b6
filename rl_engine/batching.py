"""Samples → micro-batches: sorted by length, filled to a token budget, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One completion with what the loss needs to know of it."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    """[C] nats: the sampler's log-probability of each completion token."""
    advantage: float
    weight: float = 1.0
    """Of each token in the step's loss: what the normaliser says."""
    old_logprobs: tuple[float, ...] | None = None
    """[C] nats: the learner's own at the start of the step, where they were needed."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Padded tensors of B samples, T positions wide, completions C wide, N completion tokens in all."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    source_N: Tensor
    """Flat index into [B·T] of the position whose hidden state predicts the token."""
    target_N: Tensor
    """The token that was sampled there."""
    mask_BC: Tensor
    behaviour_logprob_BC: Tensor
    old_logprob_BC: Tensor | None
    advantage_B: Tensor
    weight_B: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def spread(self, values_N: Tensor) -> Tensor:
        """[N] values of the completion tokens → [B, C], zero where there is no token."""
        zeros_BC = torch.zeros(self.mask_BC.shape, dtype=values_N.dtype, device=values_N.device)
        return zeros_BC.masked_scatter(self.mask_BC, values_N)


def pack(samples: Sequence[TrainingSample], tokens_per_microbatch: int) -> list[list[TrainingSample]]:
    """Micro-batches whose padded size stays within the budget, longest first.

    A sample longer than the budget gets a micro-batch of its own. Longest first, so that the largest allocation
    comes first: what fits then fits to the end.
    """
    batches: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda sample: -sample.num_tokens):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].num_tokens <= tokens_per_microbatch:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def share_of_rank(batches: Sequence[list[TrainingSample]], rank: int, ranks: int) -> list[list[TrainingSample]]:
    """This rank's micro-batches, dealt in turn; every rank gets as many.

    Ranks that pass through collectives in each backward must make the same number of passes, so the short ones
    repeat a sample with weight zero, which adds exactly nothing.
    """
    mine = list(batches[rank::ranks])
    most = -(-len(batches) // ranks)
    if len(mine) < most:
        mine.append([replace(batches[-1][-1], advantage=0.0, weight=0.0)])
    return mine


def collate(samples: Sequence[TrainingSample], pad_id: int) -> MicroBatch:
    """Pad samples into one micro-batch."""
    width = max(sample.num_tokens for sample in samples)
    completion_width = max(len(sample.completion_ids) for sample in samples)
    input_ids_BT = torch.full((len(samples), width), pad_id)
    attention_mask_BT = torch.zeros(len(samples), width, dtype=torch.long)
    mask_BC = torch.zeros(len(samples), completion_width, dtype=torch.bool)
    behaviour_BC = torch.zeros(len(samples), completion_width)
    old_BC = torch.zeros(len(samples), completion_width) if samples[0].old_logprobs is not None else None
    sources, targets = [], []
    for row, sample in enumerate(samples):
        start, end = len(sample.prompt_ids), sample.num_tokens
        input_ids_BT[row, :end] = torch.tensor(sample.prompt_ids + sample.completion_ids)
        attention_mask_BT[row, :end] = 1
        mask_BC[row, : end - start] = True
        behaviour_BC[row, : end - start] = torch.tensor(sample.behaviour_logprobs)
        if old_BC is not None:
            assert sample.old_logprobs is not None
            old_BC[row, : end - start] = torch.tensor(sample.old_logprobs)
        sources.append(torch.arange(start - 1, end - 1) + row * width)
        targets.append(input_ids_BT[row, start:end])
    return MicroBatch(
        input_ids_BT=input_ids_BT,
        attention_mask_BT=attention_mask_BT,
        source_N=torch.cat(sources),
        target_N=torch.cat(targets),
        mask_BC=mask_BC,
        behaviour_logprob_BC=behaviour_BC,
        old_logprob_BC=old_BC,
        advantage_B=torch.tensor([sample.advantage for sample in samples]),
        weight_B=torch.tensor([sample.weight for sample in samples]),
    )
