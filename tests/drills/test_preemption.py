"""SIGTERM in each phase: what is finished is saved, the run is gone; and it goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.records import read_metrics
from tests.drills.conftest import Reference
from tests.drills.equality import different
from tests.drills.fork import TINY, Moment, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
# One after the other in one run, which goes on after each; and the step that is saved then. The canary samples first,
# then the evaluation before the first step, if that is still to come.
ASKED = [
    ("starting vLLM", 0, 0),
    ("sampling", 2, 0),
    ("learning", 0, 0),
    ("learning", 1, 1),
    ("checkpointing", 0, 2),
    ("sampling", 1, 2),
]


def test_a_run_that_is_told_to_stop_saves_and_goes_on_bit_for_bit(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "quickstart"
    for phase, occurrence, step in ASKED:
        moment = Moment(phase=phase, occurrence=occurrence, do="terminate")
        ended = train(tmp_path, "--resume", moment=moment)
        assert ended.code == 128 + signal.SIGTERM, ended.output
        assert "Traceback" not in ended.output
        found = Checkpoints(run / "checkpoints", keep=1).newest()
        saved = found[0].step if found else 0
        assert saved == step
        assert ended.after_signal_s < 10
        print(f"SIGTERM while {phase}: gone after {ended.after_signal_s:.1f} s, saved step {saved}", flush=True)
        assert saved == (read_metrics(run) or [{"step": 0}])[-1]["step"]
        assert list((tmp_path / "tmp").iterdir()) == []
    ended = train(tmp_path, "--resume")
    assert ended.code == 0, ended.output
    assert different(run, reference.run) == []


def test_ctrl_c_under_torchrun_saves(tmp_path: Path) -> None:
    """The terminal interrupts all processes, and torchrun passes it on once more: one request, not two."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "rl_engine.train", "--config", "quickstart.yaml", *TINY, "train.steps=100", "eval.every=0"]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    run = tmp_path / "runs" / "quickstart"
    deadline = time.monotonic() + 600
    while len(read_metrics(run)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    process.wait(60)
    text = (tmp_path / "output.txt").read_text()
    print(f"Ctrl-C under torchrun: gone after {time.monotonic() - start:.1f} s", flush=True)
    found = Checkpoints(run / "checkpoints", keep=1).newest()
    assert found is not None, text
    assert found[0].step == read_metrics(run)[-1]["step"]
    assert f"stopped after step {found[0].step}" in text
