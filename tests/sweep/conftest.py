"""Sweeps over a fake training command."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_engine.config.file import read_config
from rl_engine.sweep.config import COMMANDS, SweepConfig
from tests.helpers.sweep_fake import FAKE
from tests.helpers.sweep_runs import ROOT, SweepMaker


@pytest.fixture
def make_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepMaker:
    """A sweep over the fake command, with two arms and three rates a decade apart, of which 1e-3 is the best."""
    monkeypatch.setitem(COMMANDS, "fake", FAKE)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "base.yaml").write_text('{"train": {"steps": 4, "problems_per_step": 1}}')
    (tmp_path / "sweep.yaml").write_text(
        f"""
        command: fake
        base: {tmp_path / "base.yaml"}
        grid: {{optim.lr: [1.0e-4, 1.0e-3, 1.0e-2]}}
        arms:
          one: {{}}
          other arm: {{test.shift: 3.0}}
        score: {{metric: score}}
        output_dir: {tmp_path / "out"}
        """
    )

    def make(*overrides: str) -> SweepConfig:
        return read_config(SweepConfig, str(tmp_path / "sweep.yaml"), overrides)

    return make
