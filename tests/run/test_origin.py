"""What a run directory knows of the processes that made it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rl_engine.config import load_config
from rl_engine.run.origin.starts import STARTS, read_starts, wall_s
from rl_engine.run.records import WRITTEN, Records


def test_every_process_is_noted_and_a_new_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a run is noted and a new run begins anew."""
    records = Records(tmp_path, load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"]))
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/bin/python3", "-m", "rl_engine.train", "seed=1", "a b"])
    records.open(-1)
    (start,) = read_starts(tmp_path)
    assert start["command"] == "python3 -m rl_engine.train seed=1 'a b'"
    assert "CPU cores" in start["machine"]
    assert start["versions"]["python"]
    assert wall_s([start]) is None
    records.close()
    (start,) = read_starts(tmp_path)
    records.open(3)
    records.close()
    both = read_starts(tmp_path)
    assert [start["after_step"] for start in both] == [0, 3]
    seconds = wall_s(both)
    assert seconds is not None
    assert 0 <= seconds < 60
    records.open(-1)
    assert len(read_starts(tmp_path)) == 1
    assert STARTS in WRITTEN


def test_a_run_of_an_earlier_version_has_no_notes(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
    assert wall_s([]) is None
