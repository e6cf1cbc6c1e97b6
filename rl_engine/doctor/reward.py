"""Completion → a reward that differs within any group: what the self-test learns from."""

from __future__ import annotations

import zlib


def spread(completion: str, reference: str, problem: str) -> float:
    """The self-test's share of the reward: a number in [0, 1) made from the text, so that completions differ."""
    return zlib.crc32(completion.encode()) / 2**32
