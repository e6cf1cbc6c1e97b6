"""One run is killed with kill -9 at 20 random moments and resumed after each: it ends like the undisturbed run."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.equality import different
from tests.drills.fork import PHASES, Moment, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(7200)]
SEED, MOMENTS = 7, 20
STEPS = ("train.steps=24", "eval.every=4")


def random_moments(durations: dict[str, list[float]]) -> list[Moment]:
    """Go through the phases in turn, so that the shortest is struck as often as the longest; the rest is random.

    The moment is in the first or second occurrence since the process began, so there is always work left to be
    repeated.
    """
    chance = random.Random(SEED)
    phases = [phase for phase in PHASES if phase != "writing the page"]
    moments = []
    for index in range(MOMENTS):
        if index % len(phases) == 0:
            chance.shuffle(phases)
        phase = phases[index % len(phases)]
        occurrence = chance.randrange(min(2, len(durations[phase])))
        after_s = chance.uniform(1e-4, durations[phase][occurrence])
        moments.append(Moment(phase=phase, occurrence=occurrence, after_s=after_s))
    return moments


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *STEPS)
    assert whole.code == 0, whole.output
    place = tmp_path / "killed"
    struck: Counter[str] = Counter()
    for number, moment in enumerate(random_moments(whole.durations), 1):
        killed = train(place, *STEPS, "--resume", moment=moment)
        assert killed.code == -signal.SIGKILL, killed.output
        struck[killed.phase] += 1
        resumed = killed.output.partition("resumed after step ")[2][:2].split() or ["0"]
        print(
            f"{number:2d}: resumed after step {resumed[0]}; killed {moment.after_s:.3f} s into {moment.phase} "
            f"{moment.occurrence}, in {killed.phase}",
            flush=True,
        )
    print("killed in:", dict(struck), flush=True)
    last = train(place, *STEPS, "--resume")
    assert last.code == 0, last.output
    assert different(place / "runs" / "quickstart", tmp_path / "whole" / "runs" / "quickstart") == []
