"""Completion → a reward that differs within any group, for the self-test to learn from."""

from __future__ import annotations

import zlib


def spread(completion: str, reference: str, problem: str) -> float:
    """The self-test's part of the reward: a hash of the text in [0, 1), so that completions differ."""
    return zlib.crc32(completion.encode()) / 2**32
