"""Graded groups and their advantages → the samples of each optimizer update, weighed by the step's normaliser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from rl_engine.config import Config
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.losses import NORMALIZERS
from rl_engine.learner.objective import needs_every_group
from rollout.types import RolloutGroup


def training_samples(group: RolloutGroup, advantages: Sequence[float], weight: float = 1.0) -> list[TrainingSample]:
    """A group's completions, each with its advantage."""
    return [
        TrainingSample(
            prompt_ids=group.prompt.token_ids,
            completion_ids=completion.token_ids,
            behaviour_logprobs=completion.logprobs,
            advantage=advantage,
            weight=weight,
        )
        for completion, advantage in zip(group.completions, advantages, strict=True)
    ]


def updates_of(
    config: Config, graded: Sequence[GradedGroup], advantages: Sequence[Sequence[float]], signal: Sequence[bool]
) -> list[list[TrainingSample]]:
    """The groups dealt in turn into `updates_per_step` updates; an update without anything to learn from is left out.

    A token's weight is that of the normaliser over all completions of its update. Groups without signal count there
    and are then dropped, unless a penalty or bonus gives them a gradient of their own.
    """
    count = config.learner.updates_per_step
    keep_all = needs_every_group(config.loss)
    groups = [training_samples(g.group, row) for g, row in zip(graded, advantages, strict=True)]
    updates = []
    for first in range(count):
        part = list(zip(groups[first::count], signal[first::count], strict=True))
        lengths = [float(len(sample.completion_ids)) for group, _ in part for sample in group]
        weights = iter(
            NORMALIZERS[config.loss.normalizer](
                torch.tensor(lengths, dtype=torch.float64), config.sampling.max_tokens
            ).tolist()
        )
        weighed = [([replace(s, weight=next(weights)) for s in group], useful) for group, useful in part]
        samples = [sample for group, useful in weighed if useful or keep_all for sample in group]
        if samples:
            updates.append(samples)
    return updates
