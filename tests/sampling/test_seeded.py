"""A run's random numbers come from its own seed, wherever the engine is and whatever it did to torch's random state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rl_engine.config import Config
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.placement import PLACEMENTS, start_queue
from rollout.stopping import StopRequest


def test_starting_the_engine_leaves_the_seed_of_the_run(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLACEMENTS, "inprocess", lambda *_: torch.seed())
    states = []
    for _ in range(2):
        start_queue(make_config("seed=3"), Ranks(0, 1, torch.device("cpu")), 8, StopRequest())
        states.append(torch.get_rng_state())
    assert torch.initial_seed() == 3
    assert torch.equal(*states)
