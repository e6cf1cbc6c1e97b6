"""kill -9 of the whole run at 20 random moments; each resumed, and compared with the run that nobody touched."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.conftest import Reference
from tests.drills.equality import different
from tests.drills.fork import Moment, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(7200)]
SEED, MOMENTS = 7, 20


def random_moments(durations: dict[str, list[float]]) -> list[Moment]:
    """The phases in turn, so that the shortest is struck as often as the longest; the rest by lot."""
    chance = random.Random(SEED)
    phases = chance.sample(sorted(durations), len(durations))
    moments = []
    for index in range(MOMENTS):
        phase = phases[index % len(phases)]
        occurrence = chance.randrange(len(durations[phase]))
        after_s = chance.uniform(1e-4, durations[phase][occurrence])
        moments.append(Moment(phase=phase, occurrence=occurrence, after_s=after_s))
    return moments


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(reference: Reference, tmp_path: Path) -> None:
    struck: Counter[str] = Counter()
    wrong = {}
    for index, moment in enumerate(random_moments(reference.ended.durations)):
        place = tmp_path / str(index)
        killed = train(place, moment=moment)
        # The moment may have come after the end of what it was meant for, as the runs take unequal times.
        assert killed.code in (-signal.SIGKILL, 0), killed.output
        struck[killed.phase if killed.code else "never"] += 1
        resumed = train(place, "--resume")
        assert resumed.code == 0, resumed.output
        run = place / "runs" / "quickstart"
        if found := different(run, reference.run):
            wrong[moment] = found
        print(f"{index:2d} {moment.phase:14s} {moment.after_s:6.3f} s → struck in {killed.phase}", flush=True)
    print("struck:", dict(struck), flush=True)
    assert wrong == {}
    assert struck["never"] == 0
