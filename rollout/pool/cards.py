"""This machine's cards, by the names under which another process of it is given them."""

from __future__ import annotations

import os
from collections.abc import Mapping


def visible_cards(count: int, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The name of each of the `count` cards that CUDA shows this process, in its order: card 0 here may be card 4 of
    the machine, and is named so, or by its UUID, in `CUDA_VISIBLE_DEVICES`. Whoever inherits that variable with the
    numbers of this process in it would be given other cards."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(map(str, range(count)))
    return tuple(name.strip() for name in given.split(","))[:count]
