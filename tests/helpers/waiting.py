"""Waiting in a test for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], timeout_s: float = 60, every_s: float = 0.05) -> None:
    """Return once `true()` is; fail the test where that takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(every_s)
