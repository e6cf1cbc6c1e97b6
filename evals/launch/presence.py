"""The other processes that a launcher started: whether they are still there, and what a person is told."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from datafiles.text import first_line
from rewards.command import say_error
from rollout.stopping import Stopped

# gloo's errors are plain RuntimeErrors: the place in its source, what happened, and what it supposes.
OF_GLOO = re.compile(r"\[\S*gloo/transport/\S+\] (?P<said>.*?)( This is typically caused by .*)?")

BEAT_S = 1.0
SILENT_S = 120.0
"""A process of which nothing is heard for so long is given up. It tells in a thread of its own: however long it
samples, loads or waits, that goes on, and stops when all of the process does, or its machine."""
BEATS_OF_THE_LIVING = 2
"""One may have been under way when a process was killed."""
TOLD_WITHIN = 20
"""Beats of its own for which a process that leaves listens to the others."""
LEFT, FAILED = "left", "failed"
# What gloo says where nobody is gone, and somebody has not come.
WAITED = "Timed out waiting"
WHERE_THEY_WAIT = "distributed_c10d.py"
_here: Presence | None = None
"""Of this process, from when it is one of several: an error is told when it has left, too."""


def lost_rank(error: Exception) -> str | None:
    """What a person is told of an error that says that another of a launcher's processes is gone, or does not answer;
    None of another error."""
    import torch.distributed as dist

    line = first_line(error)
    of_gloo = OF_GLOO.fullmatch(line)
    if of_gloo is None and not isinstance(error, dist.DistError | LostRankError):
        return None
    return _is_lost(of_gloo["said"] if of_gloo else line)


def _is_lost(said: str) -> str:
    """What a person is told where another rank is gone, which shows in what is `said`."""
    rank = os.environ.get("RANK", "0")
    if WAITED in said and _here is not None and (there := _here.still_there()):
        return f"rank {rank} waited for another rank, which has not come ({said.rstrip('.')}): {there}"
    return f"rank {rank} lost another rank ({said.rstrip('.')}): if that was not killed, its output says why"


class Store(Protocol):
    """Of torch's, what is used: a value is there for all processes once one has set it."""

    def set(self, key: str, value: str, /) -> None: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


class LostRankError(RuntimeError):
    """Another of a launcher's processes is gone. The text is what shows it."""


class Presence:
    """What this process tells through a launcher's store, and hears of the others there.

    One thread tells and hears, and hangs where the store does. Another counts for how many of its own turns nothing is
    heard. They are turns, not seconds: all processes may have been stopped for an hour, to go on together.
    """

    def __init__(self, rank: int, count: int, store: Store, give_up: Callable[[str], None]) -> None:
        self._rank, self._store, self._give_up = rank, store, give_up
        self._others = [other for other in range(count) if other != rank]
        self._told: dict[int, str] = {}
        self._heard: Counter[int] = Counter()
        self._silent: Counter[int] = Counter()
        self._mark = ""
        """What it says of itself at last."""
        self._turn, self._over = threading.Event(), threading.Event()
        self._speaker = threading.Thread(target=self._tell_and_hear, daemon=True)
        self._speaker.start()
        threading.Thread(target=self._count_silence, daemon=True).start()

    def leave(self, *, failed: bool) -> None:
        """From now on nothing need be heard of this process."""
        self._mark = FAILED if failed else LEFT
        self._turn.set()

    def lost(self) -> list[int]:
        """The others that are gone without having left: they failed, or nothing is heard of them while this process,
        which has left, still listens. None where it hears nothing itself."""
        before = Counter(self._heard)
        for _ in range(round(10 * TOLD_WITHIN)):
            gone = [
                other
                for other in self._others
                if self._told.get(other) != LEFT and self._heard[other] - before[other] < BEATS_OF_THE_LIVING
            ]
            failed = [other for other in self._others if self._told.get(other) == FAILED]
            if failed or not gone:
                return failed
            time.sleep(BEAT_S / 10)
        return gone if self._speaker.is_alive() else []

    def still_there(self) -> str:
        """Which of the others are heard of and do not wait themselves, and where each is in its program; of all where
        all wait, as for different things. Nothing where none is heard."""
        places = {
            other: told.partition(" ")[2]
            for other, told in sorted(self._told.items())
            if self._silent[other] <= BEATS_OF_THE_LIVING and " " in told
        }
        busy = {other: place for other, place in places.items() if not place.startswith(WHERE_THEY_WAIT)}
        return ", ".join(f"rank {other} is still running, at {place}" for other, place in (busy or places).items())

    def close(self) -> None:
        """Tell the last, and listen no longer."""
        self._over.set()
        self._turn.set()
        self._speaker.join(BEAT_S)

    def _tell_and_hear(self) -> None:
        beat = 0
        with contextlib.suppress(RuntimeError):  # the store is gone, with its process
            while True:
                over = self._over.is_set()
                beat += 1
                self._store.set(_key(self._rank), self._mark or f"{beat} {_place()}")
                if over:
                    return
                values = self._store.multi_get([_key(other) for other in self._others])
                for other, value in zip(self._others, values, strict=True):
                    told = value.decode()
                    if told != self._told.get(other):
                        self._heard[other] += 1
                    if told != self._told.get(other) or told in (LEFT, FAILED):
                        self._silent[other] = 0
                    self._told[other] = told
                self._turn.wait(BEAT_S)
                self._turn.clear()

    def _count_silence(self) -> None:
        while not self._over.wait(BEAT_S):
            there = self._speaker.is_alive()
            # Of the others one may still be starting. Where the store is gone, nothing will be heard of it either.
            self._silent.update(list(self._told) if there else self._others)
            silent = [other for other in self._others if self._silent[other] * BEAT_S >= SILENT_S]
            if silent and not self._mark:
                said = f"no sign of {_named(silent)} for {SILENT_S:.0f} s"
                self._give_up(_is_lost(said if there else f"{said}, and the launcher is gone"))


@contextlib.contextmanager
def presence(rank: int, count: int, way_on: Callable[[], str]) -> Iterator[None]:
    """Inside the block the processes of a launcher, which have found each other, hear of each other; one that hangs, or
    whose machine is gone, is given up after `SILENT_S`: the process ends, wherever it is.

    A launcher that has lost a process ends the others as if somebody had asked them to stop: raises `LostRankError` in
    the place of `Stopped` where another is gone. `way_on`: what a person can do then.
    """
    if count == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    def give_up(message: str) -> None:
        """From another thread than the one that waits, in a library, for who will never come."""
        say_error(f"{message}\n{way_on()}", 1)
        sys.stderr.flush()
        os._exit(1)

    store, _, _ = next(iter(rendezvous("env://")))
    global _here
    _here = here = Presence(rank, count, store, give_up)
    try:
        yield
    except Stopped as error:
        here.leave(failed=False)
        if lost := here.lost():
            raise LostRankError(f"{_named(lost)} failed or stopped responding") from error
        raise
    except BaseException:
        here.leave(failed=True)
        raise
    else:
        here.leave(failed=False)
    finally:
        here.close()


def _place() -> str:
    """Where the main thread is: `rewards.py:12 in score`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "its end"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _key(rank: int) -> str:
    return f"presence/{rank}"


def _named(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"
