"""Several runs in one process → one of them at work at a time, until it waits for samples.

A run keeps its thread, and with it its stack, its `with` blocks and its errors: its code is that of a run alone. What a
library keeps for the whole process and a run may change is kept for each here: torch's random state.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch


class Turn:
    """A thread that runs only while it has the turn. Whoever deals the turns waits meanwhile."""

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
        """Whether there is something to do: what it waits for is there, or is not to be waited for any longer."""
        return self._to_raise is not None or self._ready()

    def take(self) -> None:
        """Let it run until it waits for something, or is over. Raises what its body raised."""
        with self.randomness():
            if self._thread.ident is None:
                self._thread.start()
            self._given.release()
            self._back.acquire()
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def randomness(self) -> Iterator[None]:
        """Inside the block torch's random state is that of this run."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(outside)

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where it waits, in its next turn."""
        self._to_raise = error

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """To be called in its own thread: give the turn away, and go on in a turn in which `ready` holds."""
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
            torch.cuda.set_device(self._card)  # of each thread
        try:
            self._body()
        except BaseException as error:  # noqa: BLE001 - raised again by `take`, where somebody hears of it
            self._failure = error
        finally:
            self.over = True
            self._back.release()
