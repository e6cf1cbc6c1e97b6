"""Groups that were sampled in other company: the same, but for what rounding may change."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rollout.types import Completion, RolloutGroup

# What float32 makes of the same sum in another order, in nats.
ROUNDING = 1e-4


def completions(groups: Sequence[RolloutGroup]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def assert_same_but_for_rounding(found: Sequence[RolloutGroup], alone: Sequence[RolloutGroup]) -> None:
    """Another batch rounds otherwise. A token may be another only where two were all but equally likely to be drawn:
    what comes before it is the same, and it is not seen twice in so few."""
    assert [group.prompt for group in found] == [group.prompt for group in alone]
    parted = 0
    for one, other in zip(completions(found), completions(alone), strict=True):
        pairs = list(zip(one.token_ids, other.token_ids, strict=False))
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert one.logprobs[:same] == pytest.approx(other.logprobs[:same], abs=ROUNDING)
        parted += one.token_ids != other.token_ids
    assert parted <= 1
