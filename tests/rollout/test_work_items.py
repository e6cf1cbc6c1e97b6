"""How a request is split into work items."""

from __future__ import annotations

import pytest

from rollout.work_items import LARGEST_PIECE, piece_size, pieces_of


@pytest.mark.parametrize(
    ("prompts", "workers", "expected"),
    [
        (32, 16, 2),
        (64, 2, 16),
        (8, 2, 4),
        (40, 2, 10),  # two turns of ten, not 16 and 16 and then 8
        (32, 3, 11),
        (31, 16, 2),
        (33, 16, 2),  # pieces of three would make eleven
        (8, 16, 1),
        (17, 1, 9),
        (0, 4, 1),
        (1, 1, 1),
    ],
)
def test_a_piece_by_hand(prompts: int, workers: int, expected: int) -> None:
    assert piece_size(prompts, workers) == expected


def test_every_worker_has_one_in_few_turns_of_even_shares() -> None:
    for prompts in range(1, 300):
        for workers in range(1, 40):
            piece = piece_size(prompts, workers)
            assert 1 <= piece <= LARGEST_PIECE
            pieces = pieces_of(prompts, piece)
            assert pieces >= min(workers, prompts)
            # No worker has more to do than an even share and one piece.
            assert pieces_of(pieces, workers) * piece <= prompts / workers + 2 * piece
            if prompts % (workers * LARGEST_PIECE) == 0:
                assert piece == LARGEST_PIECE
