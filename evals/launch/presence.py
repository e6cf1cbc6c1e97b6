"""The launcher's other processes → whether they are still alive, and a message for the user if not."""

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
from evals.launch.group import same_card
from rewards.command import print_error
from rollout.stopping import Stopped

# gloo's errors are plain RuntimeErrors: the place in its source code, what happened, and a guess at the cause.
OF_GLOO = re.compile(r"\[\S*gloo/transport/\S+\] (?P<said>.*?)( This is typically caused by .*)?")

BEAT_S = 1.0
SILENT_S = 120.0
"""A process that sends nothing for this long is given up. Heartbeats come from a thread of their own, which keeps
running however long the process samples, loads or waits, and stops only with the whole process or its machine."""
BEATS_OF_THE_LIVING = 2
"""The number of beats that shows that a process is alive: one may have been in flight when the process was killed."""
NEWS_WITHIN = 20
"""How many of its own beats a process that is leaving keeps listening to the others."""
LEFT, FAILED = "left", "failed"
# gloo's message if all processes are alive, but one has not reached the collective call.
WAITED = "Timed out waiting"
WHERE_THEY_WAIT = "distributed_c10d.py"
_here: Presence | None = None
"""This process's presence, once it is one of several; kept after it has left, because errors are reported then too."""


def lost_rank(error: Exception) -> str | None:
    """The message for an error that shows that another of the launcher's processes is gone, does not answer, or has
    this one's card; None for any other error."""
    import torch.distributed as dist

    if (shared := same_card(error)) is not None:
        return shared
    line = first_line(error)
    of_gloo = OF_GLOO.fullmatch(line)
    if of_gloo is None and not isinstance(error, dist.DistError | LostRankError):
        return None
    if _here is None and os.environ.get("WORLD_SIZE", "1") == "1":
        return None  # a single process has groups too, such as the sampler's, but nobody to lose
    return _is_lost(of_gloo["said"] if of_gloo else line)


def _is_lost(message: str) -> str:
    """The message for a lost rank; `message` is the evidence."""
    rank = os.environ.get("RANK", "0")
    if WAITED in message and _here is not None and (there := _here.still_there()):
        return f"rank {rank} waited for another rank, which has not come ({message.rstrip('.')}): {there}"
    return f"rank {rank} lost another rank ({message.rstrip('.')}): if that was not killed, its output says why"


class Store(Protocol):
    """The part of torch's store that is used. All processes see a value once one has set it."""

    def set(self, key: str, value: str, /) -> None: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


class LostRankError(RuntimeError):
    """Another of the launcher's processes is gone. The message is the evidence."""


class Presence:
    """This process's heartbeats through the launcher's store, and those of the others.

    One thread sends and receives, and hangs if the store does. Another counts for how many of its own turns nothing has
    been received. It counts turns, not seconds, because all processes may be suspended for an hour and then continue.
    """

    def __init__(self, rank: int, count: int, store: Store, give_up: Callable[[str], None]) -> None:
        self._rank, self._store, self._give_up = rank, store, give_up
        self._others = [other for other in range(count) if other != rank]
        self._told: dict[int, str] = {}
        self._heard: Counter[int] = Counter()
        self._silent: Counter[int] = Counter()
        self._mark = ""
        """The final status that this process sends."""
        self._turn, self._over = threading.Event(), threading.Event()
        self._speaker = threading.Thread(target=self._exchange_news, daemon=True)
        self._speaker.start()
        threading.Thread(target=self._count_silence, daemon=True).start()

    def leave(self, *, failed: bool) -> None:
        """Tell the others not to expect further heartbeats from this process."""
        self._mark = FAILED if failed else LEFT
        self._turn.set()

    def lost(self) -> list[int]:
        """The other ranks that are gone without having left: they failed, or they were silent while this process, which
        has left, kept listening. Empty if this process cannot receive anything itself."""
        before = Counter(self._heard)
        for _ in range(round(10 * NEWS_WITHIN)):
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
        """The other ranks that are alive and not waiting themselves, with where each is in its program. If all wait, as
        for different collectives, all of them; empty if none is heard."""
        places = {
            other: message.partition(" ")[2]
            for other, message in sorted(self._told.items())
            if self._silent[other] <= BEATS_OF_THE_LIVING and " " in message
        }
        busy = {other: place for other, place in places.items() if not place.startswith(WHERE_THEY_WAIT)}
        return ", ".join(f"rank {other} is still running, at {place}" for other, place in (busy or places).items())

    def close(self) -> None:
        """Send the final status and stop listening."""
        self._over.set()
        self._turn.set()
        self._speaker.join(BEAT_S)

    def _exchange_news(self) -> None:
        beat = 0
        with contextlib.suppress(RuntimeError):  # the store is gone, as is its process
            while True:
                over = self._over.is_set()
                beat += 1
                self._store.set(_key(self._rank), self._mark or f"{beat} {_place()}")
                if over:
                    return
                values = self._store.multi_get([_key(other) for other in self._others])
                for other, value in zip(self._others, values, strict=True):
                    message = value.decode()
                    if message != self._told.get(other):
                        self._heard[other] += 1
                    if message != self._told.get(other) or message in (LEFT, FAILED):
                        self._silent[other] = 0
                    self._told[other] = message
                self._turn.wait(BEAT_S)
                self._turn.clear()

    def _count_silence(self) -> None:
        while not self._over.wait(BEAT_S):
            there = self._speaker.is_alive()
            # Do not count ranks never heard from: they may still be starting. Without the store, none will be heard.
            self._silent.update(list(self._told) if there else self._others)
            silent = [other for other in self._others if self._silent[other] * BEAT_S >= SILENT_S]
            if silent and not self._mark:
                message = f"no sign of {_named(silent)} for {SILENT_S:.0f} s"
                self._give_up(_is_lost(message if there else f"{message}, and the launcher is gone"))


@contextlib.contextmanager
def presence(rank: int, count: int, how_to_continue: Callable[[], str]) -> Iterator[None]:
    """A context in which the launcher's processes, which have already found each other, exchange heartbeats. If one
    hangs, or its machine is gone, the others give it up after `SILENT_S`: they end, whatever they are doing.

    A launcher that has lost a process ends the others as if the user had asked them to stop. So this raises
    `LostRankError` instead of `Stopped` if another process is gone. `how_to_continue` says what the user can do then.
    """
    if count == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    def give_up(message: str) -> None:
        """End the process, from a thread, while the main thread may be waiting in a library for a rank that is gone."""
        print_error(f"{message}\n{how_to_continue()}", 1)
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
    """Where the main thread is, such as `rewards.py:12 in score`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "its end"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _key(rank: int) -> str:
    return f"presence/{rank}"


def _named(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"
