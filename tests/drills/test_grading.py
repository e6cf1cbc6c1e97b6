"""Workers and fork server of the grader are killed, stopped and slowed while they judge: it never gives a wrong
verdict."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from rewards import Grader

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]
RIGHT, WRONG = ("\\boxed{2x+3}", "3+2x"), ("\\boxed{7}", "8")
ITEMS = [RIGHT, WRONG] * 2000
EXPECTED = ["correct", "incorrect"] * 2000


def fork_server() -> psutil.Process:
    return next(p for p in psutil.Process().children() if "rewards.workers.fork_server" in p.cmdline())


def workers() -> list[psutil.Process]:
    return fork_server().children()


def harass(grader: Grader, disturb: Callable[[], None], times: int) -> Counter[tuple[str, str]]:
    """(expected, found) verdicts of items that are graded while the processes are disturbed."""
    done = threading.Event()

    def work() -> None:
        left = times
        while left and not done.wait(0.3):
            try:
                disturb()
                left -= 1
            except (StopIteration, IndexError, psutil.Error):
                continue  # it has just ended

    thread = threading.Thread(target=work)
    thread.start()
    found: Counter[tuple[str, str]] = Counter()
    try:
        # However fast the processor is, the last disturbance must meet work.
        while thread.is_alive():
            results = grader.grade(ITEMS)
            found.update((expected, str(result.verdict)) for expected, result in zip(EXPECTED, results, strict=True))
    finally:
        done.set()
        thread.join()
    return found


def kill_one() -> None:
    workers()[0].kill()


def kill_fork_server() -> None:
    """Only once it has workers: a fork server that is killed three times while it starts is given up with an error."""
    if workers():
        fork_server().kill()


def stop_one() -> None:
    workers()[0].suspend()


@pytest.mark.parametrize(("disturb", "times"), [(kill_one, 10), (stop_one, 5), (kill_fork_server, 1)])
def test_verdicts_are_right_or_counted_as_failures(disturb: Callable[[], None], times: int) -> None:
    with Grader(workers=2, timeout_s=1.0) as grader:
        grader.grade(ITEMS[:2])
        found = harass(grader, disturb, times)
        print(f"{disturb.__name__}: {dict(found)}, {grader.restarts} restarts", flush=True)
    for expected in ("correct", "incorrect"):
        honest = {(expected, verdict): found[expected, verdict] for verdict in (expected, "timeout", "error")}
        assert sum(honest.values()) == sum(number for (wanted, _), number in found.items() if wanted == expected)
        assert honest[expected, expected] > 0.95 * sum(honest.values())
    assert grader.restarts > 0


def test_a_grader_all_of_whose_processes_are_stopped_comes_back() -> None:
    """The kernel's timer cannot end a stopped process, and a stopped fork server kills nothing, so the grader does."""
    with Grader(workers=2, timeout_s=1.0) as grader:
        grader.grade(ITEMS[:2])
        for process in [fork_server(), *workers()]:
            os.kill(process.pid, signal.SIGSTOP)
        start = time.monotonic()
        found = [str(result.verdict) for result in grader.grade(ITEMS[:100])]
        print(f"all stopped: {Counter(found)} after {time.monotonic() - start:.1f} s", flush=True)
    assert all(verdict in (expected, "timeout") for verdict, expected in zip(found, EXPECTED, strict=False))
    assert Counter(found)["timeout"] <= 2
