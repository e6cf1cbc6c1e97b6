"""Loading large libraries in less time."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import libraries inside the block without garbage collection, and exempt their objects from it afterwards.

    They are a million objects that live as long as the process. Scanning them costs seconds in all: during the import,
    at each later collection, and at exit.
    """
    collects = gc.isenabled()
    gc.collect()  # the program's own garbage, such as a learner's start-up, must not be frozen too
    gc.disable()
    atexit.register(gc.freeze)  # again at exit: vLLM unfreezes them when an engine ends
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
