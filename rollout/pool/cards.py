"""This machine's cards, by the names that assign them to another process."""

from __future__ import annotations

import os
from collections.abc import Mapping


def visible_cards(count: int, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The names of the `count` cards that CUDA shows this process, in its order. Card 0 here may be card 4 of the
    machine, which `CUDA_VISIBLE_DEVICES` calls 4 or by its UUID. A child process given this process's own numbers in
    that variable would get other cards."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(map(str, range(count)))
    return tuple(name.strip() for name in given.split(","))[:count]
