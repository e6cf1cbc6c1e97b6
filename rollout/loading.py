"""Loading large libraries in less time."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Inside the block libraries are imported. Python looks for no cycles in what they make, then or later.

    That is a million objects, which live as long as the process. To look through them takes time while they are
    imported, at each collection after that, and when the process ends: seconds in all.
    """
    collects = gc.isenabled()
    gc.collect()  # what the program itself has let go of, a learner's start perhaps, is not to stay for ever
    gc.disable()
    atexit.register(gc.freeze)  # vLLM thaws them when an engine ends
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
