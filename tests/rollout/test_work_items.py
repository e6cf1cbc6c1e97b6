"""How a request is cut."""

from __future__ import annotations

import pytest

from rollout.work_items import LARGEST_PIECE, piece_size, pieces_of


@pytest.mark.parametrize(
    ("prompts", "workers", "expected"),
    [(32, 16, 2), (64, 2, 16), (33, 16, 2), (31, 16, 2), (8, 16, 1), (8, 1, 8), (500, 1, 16), (0, 4, 1), (1, 1, 1)],
)
def test_a_piece_by_hand(prompts: int, workers: int, expected: int) -> None:
    assert piece_size(prompts, workers) == expected


def test_a_piece_is_the_largest_that_leaves_one_for_every_worker() -> None:
    for prompts in range(1, 70):
        for workers in range(1, 40):
            found = piece_size(prompts, workers)
            enough = [size for size in range(1, LARGEST_PIECE + 1) if pieces_of(prompts, size) >= min(workers, prompts)]
            assert found == max(size for size in enough if size <= prompts)
