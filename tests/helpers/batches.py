"""Small objects that several tests need."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.updates import training_samples
from rollout.types import RolloutGroup

# Limits on the sampler gap for tests that are not about it.
LOOSE = GapLimits(kl=1e9, logprob=1e9)


def alternating(groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
    """Training samples of every completion, with small advantages of alternating sign."""
    signs = itertools.cycle((-1.0, 1.0))
    return [
        replace(sample, weight=1 / 240)
        for group in groups
        for sample in training_samples(group, [next(signs) for _ in group.completions])
    ]
