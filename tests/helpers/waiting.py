"""Waiting in a test for another process or thread."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], timeout_s: float = 60, every_s: float = 0.05) -> None:
    """Return once `true()` is true; fail the test if that takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(every_s)
