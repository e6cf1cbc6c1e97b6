"""Small things that several tests make alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.updates import training_samples
from rollout.types import RolloutGroup

# Limits of the sampler's gap for tests whose matter it is not.
LOOSE = GapLimits(kl=1e9, logprob=1e9)


def alternating(groups: Sequence[RolloutGroup]) -> list[TrainingSample]:
    """Every completion, good and bad by turns, with a small weight."""
    signs = itertools.cycle((-1.0, 1.0))
    return [
        sample
        for group in groups
        for sample in training_samples(group, [next(signs) for _ in group.completions], weight=1 / 240)
    ]
