"""Checkpoints: how many are kept, and which of them is trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from rl_engine.run.checkpoint import RNG, Checkpoints, RunState


def state_of(step: int) -> RunState:
    return RunState(step=step, position=step, version=step, config_hash="h")


def newest_step(checkpoints: Checkpoints) -> int:
    found = checkpoints.newest()
    assert found is not None
    return found[0].step


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for killed in (".step000003.partial", ".step000001.gone"):
        (tmp_path / killed).mkdir()
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step000002", "step000003"]
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == state_of(3)
    assert Checkpoints(tmp_path / "none", keep=1).newest() is None
    drawn = torch.rand(3)
    torch.set_rng_state(found[1][RNG])
    assert torch.equal(torch.rand(3), drawn)


def test_a_damaged_checkpoint_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    """The run resumes from before the damaged checkpoint. What it saves next is kept, although its step is lower."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state_of(4), {})
    shutil.copytree(tmp_path / "step000004", tmp_path / "step000006")
    (tmp_path / "step000006" / "learner.safetensors").write_bytes(b"torn")
    assert newest_step(checkpoints) == 4
    checkpoints.save(state_of(5), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step000005"]


def test_steps_beyond_six_digits_are_in_order(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_999, 1_000_000):
        checkpoints.save(state_of(step), {})
    assert newest_step(checkpoints) == 1_000_000
