"""Samples → micro-batches: sorted, filled to a token budget, laid out for the model in one of four ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rl_engine.policy.attention import PACKED_SHARED, SHARED_PROMPT, PackedRows, SharedPrompts
from rl_engine.policy.micro_batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One completion with everything the loss needs."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    """[C] nats: the sampler's log-probability of each completion token."""
    advantage: float
    weight: float = 1.0
    """The weight of each of its tokens in the step's loss, set by the normalizer."""
    old_logprobs: tuple[float, ...] | None = None
    """[C] nats: the learner's own log-probabilities at the start of the step, if the loss needs them."""
    origin: str = ""
    """For messages: which completion of which problem."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def continued(token_ids: Sequence[int]) -> TrainingSample:
    """A sample of one text, in which all tokens but the first stand for the completion."""
    first, *others = token_ids
    return TrainingSample(
        prompt_ids=(first,),
        completion_ids=tuple(others),
        behaviour_logprobs=(0.0,) * len(others),
        advantage=0.0,
        weight=0.0,
    )


def pack(samples: Sequence[TrainingSample], tokens_per_microbatch: int, layout: str) -> list[list[TrainingSample]]:
    """Group samples into micro-batches whose size, padding included, stays within the budget.

    A sample longer than the budget gets a micro-batch of its own. The longest samples come first, so that the largest
    allocation is made first and a step that will run out of memory does so at its start.
    """
    size = LAYOUTS[layout].size
    batches: list[list[TrainingSample]] = []
    for sample in LAYOUTS[layout].order(samples):
        if batches and size([*batches[-1], sample]) <= tokens_per_microbatch:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def share_of_rank(batches: Sequence[list[TrainingSample]], rank: int, ranks: int) -> list[list[TrainingSample]]:
    """This rank's micro-batches, dealt round-robin; every rank gets the same number.

    Each backward pass runs collectives, so all ranks must make the same number of passes. A rank that is one short
    ends with a micro-batch that repeats one sample at weight zero, which contributes exactly nothing.
    """
    mine = list(batches[rank::ranks])
    if len(mine) < math.ceil(len(batches) / ranks):
        mine.append([replace(batches[-1][-1], advantage=0.0, weight=0.0)])
    return mine


def collate(samples: Sequence[TrainingSample], pad_id: int, layout: str) -> MicroBatch:
    """Lay samples out as one micro-batch."""
    rows = LAYOUTS[layout].rows(samples, pad_id)
    lengths = [len(sample.completion_ids) for sample in samples]
    width = max(lengths)
    old_rows = [sample.old_logprobs for sample in samples if sample.old_logprobs is not None]
    assert len(old_rows) in (0, len(samples))
    return MicroBatch(
        input_ids_BT=rows.input_ids_BT,
        attention_mask_BT=rows.attention_mask_BT,
        position_ids_BT=rows.position_ids_BT,
        layout=rows.layout,
        source_N=rows.source_N,
        target_N=torch.cat([torch.tensor(sample.completion_ids) for sample in samples]),
        mask_BC=_mask(lengths, width),
        place_N=torch.cat([torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]),
        behaviour_logprob_BC=_pad([sample.behaviour_logprobs for sample in samples], width, 0.0),
        old_logprob_BC=_pad(old_rows, width, 0.0) if old_rows else None,
        advantage_B=torch.tensor([sample.advantage for sample in samples]),
        weight_B=torch.tensor([sample.weight for sample in samples]),
    )


def _pad(rows: Sequence[Sequence[float]], width: int, value: float) -> Tensor:
    """Rows padded on the right, as int64 for integers and float32 for floats."""
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _mask(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


class _Rows(NamedTuple):
    """The part of a micro-batch that the model reads."""

    input_ids_BT: Tensor
    source_N: Tensor
    attention_mask_BT: Tensor | None = None
    position_ids_BT: Tensor | None = None
    layout: SharedPrompts | PackedRows | None = None


def _sources(sample: TrainingSample, start: int) -> Tensor:
    """The positions that predict the completion tokens of a sample that begins at `start`."""
    return torch.arange(start + len(sample.prompt_ids) - 1, start + sample.num_tokens - 1)


def _padded_rows(samples: Sequence[TrainingSample], pad_id: int) -> _Rows:
    width = max(sample.num_tokens for sample in samples)
    return _Rows(
        _pad([sample.prompt_ids + sample.completion_ids for sample in samples], width, pad_id),
        torch.cat([_sources(sample, row * width) for row, sample in enumerate(samples)]),
        attention_mask_BT=_mask([sample.num_tokens for sample in samples], width).long(),
    )


def _packed_rows(samples: Sequence[TrainingSample], pad_id: int) -> _Rows:
    starts = [0, *itertools.accumulate(sample.num_tokens for sample in samples)]
    tokens = [token for sample in samples for token in sample.prompt_ids + sample.completion_ids]
    return _Rows(
        torch.tensor([tokens]),
        torch.cat([_sources(sample, start) for sample, start in zip(samples, starts, strict=False)]),
        position_ids_BT=torch.cat([torch.arange(sample.num_tokens) for sample in samples])[None],
        layout=PackedRows.of(tuple(sample.num_tokens for sample in samples)),
    )


def _packed_shared_rows(samples: Sequence[TrainingSample], pad_id: int) -> _Rows:
    """Place each prompt once, before the first of its completions; completions keep the order of the samples.

    Nothing is predicted from a completion's last token, so it gets no position.
    """
    tokens: list[int] = []
    positions: list[Tensor] = []
    lengths: list[int] = []
    continued: list[int | None] = []
    prompts: dict[tuple[int, ...], tuple[int, int]] = {}
    """Prompt → (index of its segment in the row, position of its last token)."""
    sources = []

    def put(piece: tuple[int, ...], first_position: int, behind: int | None) -> None:
        tokens.extend(piece)
        positions.append(torch.arange(first_position, first_position + len(piece)))
        lengths.append(len(piece))
        continued.append(behind)

    for sample in samples:
        if sample.prompt_ids not in prompts:
            prompts[sample.prompt_ids] = len(lengths), len(tokens) + len(sample.prompt_ids) - 1
            put(sample.prompt_ids, 0, None)
        piece, last = prompts[sample.prompt_ids]
        own = sample.completion_ids[:-1]
        sources.append(torch.tensor([last, *range(len(tokens), len(tokens) + len(own))]))
        if own:
            put(own, len(sample.prompt_ids), piece)
    return _Rows(
        torch.tensor([tokens]),
        torch.cat(sources),
        position_ids_BT=torch.cat(positions)[None],
        layout=PackedRows.continuing(lengths, continued),
    )


def _packed_shared_size(samples: Sequence[TrainingSample]) -> int:
    prompts = {sample.prompt_ids for sample in samples}
    return sum(map(len, prompts)) + sum(len(sample.completion_ids) - 1 for sample in samples)


def _shared_widths(samples: Sequence[TrainingSample]) -> tuple[list[tuple[int, ...]], int, int]:
    """(distinct prompts, positions per prompt, positions per completion).

    Nothing is predicted from a completion's last token, so it gets no position.
    """
    prompts = list(dict.fromkeys(sample.prompt_ids for sample in samples))
    own = max(len(sample.completion_ids) for sample in samples) - 1
    return prompts, max(len(prompt) for prompt in prompts), max(own, 1)


def _shared_rows(samples: Sequence[TrainingSample], pad_id: int) -> _Rows:
    prompts, prompt_width, width = _shared_widths(samples)
    number = {prompt: index for index, prompt in enumerate(prompts)}
    own = [sample.completion_ids[:-1] for sample in samples]
    prompt_positions = len(prompts) * prompt_width
    lengths_B = torch.tensor([len(sample.prompt_ids) for sample in samples])
    sources = []
    for row, sample in enumerate(samples):
        # The prompt's last token predicts the first completion token; each later one is predicted by its predecessor.
        first = number[sample.prompt_ids] * prompt_width + len(sample.prompt_ids) - 1
        start = prompt_positions + row * width
        sources.append(torch.tensor([first, *range(start, start + len(sample.completion_ids) - 1)]))
    positions = torch.cat(
        [torch.arange(prompt_width).repeat(len(prompts)), (lengths_B[:, None] + torch.arange(width)).flatten()]
    )
    ids = [_pad(rows, columns, pad_id).flatten().long() for rows, columns in ((prompts, prompt_width), (own, width))]
    return _Rows(
        torch.cat(ids)[None],
        torch.cat(sources),
        position_ids_BT=positions[None],
        layout=SharedPrompts(
            prompts=len(prompts),
            prompt_width=prompt_width,
            prompt_of_B=torch.tensor([number[sample.prompt_ids] for sample in samples]),
            prompt_mask_BL=_mask(lengths_B.tolist(), prompt_width),
        ),
    )


def _shared_size(samples: Sequence[TrainingSample]) -> int:
    prompts, prompt_width, width = _shared_widths(samples)
    return len(prompts) * prompt_width + len(samples) * width


class _Layout(NamedTuple):
    """How samples are ordered, measured and laid out."""

    rows: Callable[[Sequence[TrainingSample], int], _Rows]
    size: Callable[[Sequence[TrainingSample]], int]
    """Number of positions in a micro-batch."""
    order: Callable[[Sequence[TrainingSample]], list[TrainingSample]]
    """Longest first, with samples next to each other where that keeps a micro-batch small."""


def _by_tokens(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    return sorted(samples, key=lambda sample: -sample.num_tokens)


def _by_completion(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    return sorted(samples, key=lambda sample: -len(sample.completion_ids))


def _by_group(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    longest: dict[tuple[int, ...], int] = {}
    for sample in samples:
        longest[sample.prompt_ids] = max(sample.num_tokens, longest.get(sample.prompt_ids, 0))
    return sorted(samples, key=lambda one: (-longest[one.prompt_ids], one.prompt_ids, -one.num_tokens))


LAYOUTS = {
    "padded": _Layout(_padded_rows, lambda samples: len(samples) * max(s.num_tokens for s in samples), _by_tokens),
    "packed": _Layout(_packed_rows, lambda samples: sum(s.num_tokens for s in samples), _by_tokens),
    SHARED_PROMPT: _Layout(_shared_rows, _shared_size, _by_completion),
    PACKED_SHARED: _Layout(_packed_shared_rows, _packed_shared_size, _by_group),
}
