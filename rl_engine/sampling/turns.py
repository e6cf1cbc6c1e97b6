"""Several runs in one process → one of them working at a time, until it waits for samples.

Each run keeps its own thread, and with it its stack, `with` blocks and exceptions, so its code is the same as for a
single run. Process-wide library state that a run may change is kept per run here: torch's random state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch


class Turn:
    """A thread that runs only while it has the turn. The thread that hands out turns waits meanwhile."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        self.name = name
        self.over = False
        self._body = body
        self._given, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._ready: Callable[[], bool] = lambda: True
        self._to_raise: BaseException | None = None
        self._failure: BaseException | None = None
        self._random = torch.get_rng_state()
        self._card = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the thread can continue: what it waits for is there, or it has been interrupted."""
        return self._to_raise is not None or self._ready()

    def take(self) -> None:
        """Let the thread run until it waits for something or ends. Raises what its body raised."""
        with self.randomness():
            if self._thread.ident is None:
                self._thread.start()
            self._given.release()
            self._back.acquire()
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def randomness(self) -> Iterator[None]:
        """Swap in this run's torch random state inside the block."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(outside)

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the thread, where it waits, on its next turn."""
        self._to_raise = error

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Yield the turn, and return in a later turn in which `ready` holds. Must be called from the thread itself."""
        assert threading.current_thread() is self._thread
        self._ready = ready
        self._back.release()
        self._given.acquire()
        error, self._to_raise = self._to_raise, None
        if error is not None:
            raise error

    def _run(self) -> None:
        self._given.acquire()
        if self._card is not None:
            torch.cuda.set_device(self._card)  # the current device is per thread
        try:
            self._body()
        except BaseException as error:  # noqa: BLE001 - raised again by `take`, in the caller's thread
            self._failure = error
        finally:
            self.over = True
            self._back.release()
