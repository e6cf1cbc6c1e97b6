"""Graded groups and their advantages → the samples of each optimizer update, weighted by the step's normalizer."""

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


def origin_of(group: RolloutGroup, index: int) -> str:
    """Names a completion in messages."""
    return f"completion {index + 1} of problem {group.prompt.problem.id}"


def training_samples(group: RolloutGroup, advantages: Sequence[float]) -> list[TrainingSample]:
    """A group's completions, each with its advantage."""
    return [
        TrainingSample(
            prompt_ids=group.prompt.token_ids,
            completion_ids=completion.token_ids,
            behaviour_logprobs=completion.logprobs,
            advantage=advantage,
            origin=origin_of(group, index),
        )
        for index, (completion, advantage) in enumerate(zip(group.completions, advantages, strict=True))
    ]


def updates_of(
    config: Config, groups: Sequence[GradedGroup], advantages: Sequence[Sequence[float]]
) -> list[list[TrainingSample]]:
    """Deal the groups round-robin into `updates_per_step` updates, leaving out updates with nothing to learn from.

    The normalizer computes token weights over all scored completions of an update. Groups without signal count there
    and are then dropped, unless a penalty or bonus gives them a gradient of their own. Unscored completions count
    nowhere and are never trained on.
    """
    count = config.learner.updates_per_step
    keep_all = needs_every_group(config.loss)
    updates = []
    for first in range(count):
        part = list(zip(groups[first::count], advantages[first::count], strict=True))
        scored = [
            (sample, keep_all or group.has_signal)
            for group, row in part
            for sample, counts in zip(training_samples(group.rollout, row), group.scored, strict=True)
            if counts
        ]
        if not scored:
            continue
        samples, teaches = zip(*scored, strict=True)
        lengths = torch.tensor([float(len(sample.completion_ids)) for sample in samples], dtype=torch.float64)
        weights = NORMALIZERS[config.loss.normalizer](lengths, config.sampling.max_tokens).tolist()
        update = [
            replace(sample, weight=weight)
            for sample, weight, kept in zip(samples, weights, teaches, strict=True)
            if kept
        ]
        if update:
            updates.append(update)
    return updates
