"""A sampler that disagrees with the learner ends the run with one line and exit code 1, and everything open is
closed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rl_engine.command import RunFailedError, explained
from rl_engine.config import load_config
from rl_engine.learner.gap import DivergedError, SamplerGapError
from rl_engine.learner.gradients import NonFiniteGradientError
from rl_engine.learner.ranks import Ranks
from rl_engine.train import one_run
from rl_engine.train.one_run import train_in_place
from rollout.stopping import StopRequest


@pytest.mark.parametrize(
    ("error", "saved", "how_to_continue"),
    [
        (SamplerGapError, 2, "step 2 is saved: --resume continues"),
        (SamplerGapError, 1, "No checkpoint of this run was saved."),
        # What could help does not change on --resume, which would compute NaN again.
        (NonFiniteGradientError, 2, "--resume keeps optim.lr and would end here again: "),
        (DivergedError, 2, "--resume keeps optim.lr and would end here again: "),
    ],
)
def test_what_stops_a_run_is_reported_with_its_step_and_version(
    error: type[RuntimeError],
    saved: int,
    how_to_continue: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    closed = []

    def off(_: object) -> None:
        raise error("sampler/kl 13")

    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}", "rewards.workers=1", "model.dtype=float32"])
    run = SimpleNamespace(
        step=3,
        version=2,
        config=config,
        saved=saved,
        finished=SimpleNamespace(step=2),
        records=SimpleNamespace(in_place=contextlib.nullcontext, close=lambda: closed.append("records")),
        sampler=SimpleNamespace(engine=SimpleNamespace(close=lambda: closed.append("engine"))),
    )
    monkeypatch.setattr(one_run, "assemble", lambda *_, **__: run)
    monkeypatch.setattr(one_run, "train", off)
    with pytest.raises(RunFailedError) as ended:
        train_in_place(config, Ranks(0, 1, torch.device("cpu")), StopRequest(), resume=False)
    assert explained(ended.value, config) == (str(ended.value), 1)
    assert closed == ["records", "engine"]
    assert str(ended.value).startswith(f"step 3, version 2: sampler/kl 13\n{how_to_continue}")
