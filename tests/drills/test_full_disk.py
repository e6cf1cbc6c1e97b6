"""The disk full at each kind of write: a plain message, nothing lost, and the same run once there is space again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_engine.run.checkpoint import Checkpoints
from rollout.adapters import AdapterStore
from tests.drills.conftest import Reference
from tests.drills.equality import different
from tests.drills.fork import Moment, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(7200)]
# One after the other in one run, which resumes after each: the disk is filled when this is about to be written.
FILLED = [
    ("publishing", 0),
    ("reporting", 0),
    ("metrics", 0),
    ("drawing", 0),
    ("rollouts", 0),
    ("checkpointing", 0),
    ("checkpointing", 1),
    ("writing the page", 0),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_run_and_nothing_else(small_disk: Path, reference: Reference, tmp_path: Path) -> None:
    run = small_disk / "runs" / "quickstart"
    steps = []
    for phase, occurrence in FILLED:
        moment = Moment(phase=phase, occurrence=occurrence, do="fill")
        ended = train(tmp_path / "notes", "--resume", moment=moment, directory=small_disk)
        message = " ".join(ended.output[ended.output.find("error:") :].split())
        print(f"{phase} {occurrence}: exit code {ended.code}, {message}", flush=True)
        assert ended.code == 1, ended.output
        assert "No space left on device: 'runs/quickstart" in message
        assert "Traceback" not in ended.output
        (small_disk / "filler").unlink()
        store = AdapterStore(run / "adapters")
        for version in store.versions():
            store.open(version)
        found = Checkpoints(run / "checkpoints", keep=1).newest()
        assert ("--resume continues it" if found else "No checkpoint of this run was saved") in message
        steps.append(found[0].step if found else 0)
    assert steps == [0, 0, 0, 0, 0, 0, 2, 3]
    ended = train(tmp_path / "notes", "--resume", directory=small_disk)
    assert ended.code == 0, ended.output
    assert different(run, reference.run) == []


def test_a_read_only_disk_is_reported_before_anything_is_loaded(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = train(tmp_path / "notes", directory=small_disk)
    said = f"error: output_dir: nothing can be written in {small_disk}: Read-only file system\n"
    assert (ended.code, ended.output) == (2, said)
    assert ended.durations == {}
