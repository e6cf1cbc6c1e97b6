"""Compares groups that were sampled in different batches: they are equal except for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rollout.types import Completion, RolloutGroup

# Difference in nats that another order of the same float32 sums causes.
ROUNDING = 1e-4


def completions(groups: Sequence[RolloutGroup]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def assert_same_but_for_rounding(found: Sequence[RolloutGroup], alone: Sequence[RolloutGroup]) -> None:
    """Another batch rounds differently. Completions may diverge only where two tokens were almost equally likely to be
    drawn: everything before is the same, and it happens at most once in so few completions."""
    assert [group.prompt for group in found] == [group.prompt for group in alone]
    parted = 0
    for one, other in zip(completions(found), completions(alone), strict=True):
        pairs = list(zip(one.token_ids, other.token_ids, strict=False))
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert one.logprobs[:same] == pytest.approx(other.logprobs[:same], abs=ROUNDING)
        parted += one.token_ids != other.token_ids
    assert parted <= 1
