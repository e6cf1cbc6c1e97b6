"""A directory with a predictable name, in a directory that everyone can write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rollout.pool.scratch import LOCK, ScratchDirectory


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's directory for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def left_behind(directory: Path) -> Path:
    directory.mkdir()
    (directory / LOCK).write_text("")
    (directory / "log").write_text("")
    return directory


def test_it_is_for_its_owner_alone_and_goes(shared: Path) -> None:
    scratch = ScratchDirectory.make("ours_")
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((scratch.path / LOCK).stat().st_mode) == 0o600
    scratch.remove()
    assert list(shared.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_used_stays(shared: Path) -> None:
    left = left_behind(shared / "ours_left")
    other = left_behind(shared / "theirs_left")
    first = ScratchDirectory.make("ours_")
    second = ScratchDirectory.make("ours_")
    assert not left.exists()
    assert other.exists()
    assert first.path.exists()
    for scratch in (first, second):
        scratch.remove()


def test_a_link_leads_nowhere(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A symlink's target is not emptied, and neither is the directory that holds the target removed."""
    precious = tmp_path_factory.mktemp("home") / "thesis.txt"
    precious.write_text("years")
    (shared / "ours_lock").mkdir()
    (shared / "ours_lock" / LOCK).symlink_to(precious)
    (shared / "ours_directory").symlink_to(left_behind(precious.parent / "run"))
    (shared / "ours_pipe").mkdir()
    os.mkfifo(shared / "ours_pipe" / LOCK)  # opening a pipe would wait for a writer
    ScratchDirectory.make("ours_").remove()
    assert precious.read_text() == "years"
    assert (precious.parent / "run" / "log").exists()
    assert sorted(path.name for path in shared.iterdir()) == ["ours_directory", "ours_lock", "ours_pipe"]


@pytest.mark.parametrize("theirs", ["directory", "lock"])
def test_what_another_user_made_is_not_touched(shared: Path, theirs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    left = left_behind(shared / "ours_left")
    os.chown(left if theirs == "directory" else left / LOCK, 12345, 12345)
    ScratchDirectory.make("ours_").remove()
    assert (left / "log").exists()
