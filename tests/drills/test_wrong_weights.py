"""A worker that samples from an old adapter or the base under the right name is stopped before anything is learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rl_engine.run.records import read_metrics
from rollout.adapters import AdapterStore
from tests.drills.bad_engines import BAD, BASE, BASE_AFTER_CANARY, STALE, STALE_AFTER_CANARY
from tests.drills.equality import different
from tests.drills.fork import train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
SETTINGS = (
    "rollout.placement=ray",
    "rollout.workers=1",
    "train.steps=4",
    "train.problems_per_step=8",
    "eval.every=0",
    "checkpoint.every=1",
    # So that versions a step apart differ by more than two implementations of one version do.
    "optim.lr=1e-2",
)
KEY = f"policy-v{BAD:06d}"
CANARY = (
    "did not reach the sampler: on the canary prompts",
    "is loaded, but the sampler answers exactly as the version",
)


def stopped(place: Path, *settings: str, prepare: Callable[[], None]) -> tuple[Path, str]:
    """A run that such a worker has ended, and the end of its output."""
    ended = train(place, *SETTINGS, *settings, prepare=prepare)
    message = " ".join(ended.output.split())[-1000:]
    print(message, flush=True)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    return place / "runs" / "quickstart", message


@pytest.mark.parametrize(("staleness", "prepare"), [(0, STALE), (1, BASE)], ids=["stale-0", "base-1"])
def test_the_canary_sees_wrong_weights_before_sampling(
    short_path: Path, staleness: int, prepare: Callable[[], None]
) -> None:
    run, message = stopped(short_path, f"rollout.max_staleness={staleness}", prepare=prepare)
    assert any(f"{KEY} {words}" in message for words in CANARY)
    assert AdapterStore(run / "adapters").versions()[-1] == BAD


def test_the_gap_sees_them_ahead_of_the_learner(short_path: Path) -> None:
    """The canary was answered rightly. Sampling a step ahead, the next step still takes what the version before
    sampled."""
    run, message = stopped(short_path, "rollout.max_staleness=1", prepare=STALE_AFTER_CANARY)
    assert f"the sampler disagrees with {KEY}, the version that sampled these completions" in message
    assert AdapterStore(run / "adapters").versions()[-1] == BAD + 1


def test_nothing_is_learned_from_them(short_path: Path) -> None:
    """The gap check stops the step. Resumed with an honest worker, the run equals the undisturbed one."""
    run, message = stopped(short_path / "b", prepare=BASE_AFTER_CANARY)
    assert f"version {BAD}: the sampler's log-probabilities are not the learner's" in message
    assert AdapterStore(run / "adapters").versions()[-1] == BAD
    assert read_metrics(run)[-1]["adapter/version"] == BAD
    for place in ("b", "w"):
        ended = train(short_path / place, *SETTINGS, "--resume")
        assert ended.code == 0, ended.output
    assert different(run, short_path / "w" / "runs" / "quickstart") == []
