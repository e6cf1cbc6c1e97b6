"""Samples → micro-batches: sorted by length, filled to a token budget, padded on the right or packed end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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
    """Tensors of B samples, completions C wide, N completion tokens in all.

    Padded, each sample is a row of T positions; packed, one row of T positions holds them all end to end, told apart by
    positions that begin again at zero.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    """Of padding; None where there is none."""
    position_ids_BT: Tensor | None
    """Where samples begin in a packed row; None where each has its own."""
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


def pack(
    samples: Sequence[TrainingSample], tokens_per_microbatch: int, *, packed: bool = False
) -> list[list[TrainingSample]]:
    """Micro-batches whose size stays within the budget, padding included, longest first.

    A sample longer than the budget gets a micro-batch of its own. Longest first, so that the largest allocation
    comes first: what fits then fits to the end.
    """
    batches: list[list[TrainingSample]] = []

    def size_with(sample: TrainingSample) -> int:
        if packed:
            return sum(s.num_tokens for s in batches[-1]) + sample.num_tokens
        return (len(batches[-1]) + 1) * batches[-1][0].num_tokens

    for sample in sorted(samples, key=lambda sample: -sample.num_tokens):
        if batches and size_with(sample) <= tokens_per_microbatch:
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


def collate(samples: Sequence[TrainingSample], pad_id: int, *, packed: bool = False) -> MicroBatch:
    """Bring samples into one micro-batch."""
    rows = _packed_rows(samples) if packed else _padded_rows(samples, pad_id)
    width = max(len(sample.completion_ids) for sample in samples)
    lengths_B = torch.tensor([len(sample.completion_ids) for sample in samples])

    def padded(rows: Iterable[Sequence[float]]) -> Tensor:
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float32)

    old_rows = [sample.old_logprobs for sample in samples if sample.old_logprobs is not None]
    assert len(old_rows) in (0, len(samples))
    return MicroBatch(
        input_ids_BT=rows.input_ids_BT,
        attention_mask_BT=rows.attention_mask_BT,
        position_ids_BT=rows.position_ids_BT,
        source_N=rows.source_N,
        target_N=torch.cat([torch.tensor(sample.completion_ids) for sample in samples]),
        mask_BC=torch.arange(width) < lengths_B[:, None],
        behaviour_logprob_BC=padded(sample.behaviour_logprobs for sample in samples),
        old_logprob_BC=padded(old_rows) if old_rows else None,
        advantage_B=torch.tensor([sample.advantage for sample in samples]),
        weight_B=torch.tensor([sample.weight for sample in samples]),
    )


class _Rows(NamedTuple):
    """The part of a micro-batch that the model reads."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    position_ids_BT: Tensor | None
    source_N: Tensor


def _sources(sample: TrainingSample, start: int) -> Tensor:
    """Positions that predict a sample's completion tokens, where the sample begins at `start`."""
    return torch.arange(start + len(sample.prompt_ids) - 1, start + sample.num_tokens - 1)


def _padded_rows(samples: Sequence[TrainingSample], pad_id: int) -> _Rows:
    width = max(sample.num_tokens for sample in samples)
    input_ids_BT = torch.full((len(samples), width), pad_id)
    attention_mask_BT = torch.zeros(len(samples), width, dtype=torch.long)
    for row, sample in enumerate(samples):
        input_ids_BT[row, : sample.num_tokens] = torch.tensor(sample.prompt_ids + sample.completion_ids)
        attention_mask_BT[row, : sample.num_tokens] = 1
    source_N = torch.cat([_sources(sample, row * width) for row, sample in enumerate(samples)])
    return _Rows(input_ids_BT, attention_mask_BT, None, source_N)


def _packed_rows(samples: Sequence[TrainingSample]) -> _Rows:
    starts = [0, *itertools.accumulate(sample.num_tokens for sample in samples)]
    tokens = [token for sample in samples for token in sample.prompt_ids + sample.completion_ids]
    position_ids_BT = torch.cat([torch.arange(sample.num_tokens) for sample in samples])[None]
    source_N = torch.cat([_sources(sample, start) for sample, start in zip(samples, starts, strict=False)])
    return _Rows(torch.tensor([tokens]), None, position_ids_BT, source_N)
