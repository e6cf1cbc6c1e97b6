"""The lock on a run's directory: who is kept out, how it is told, and which file systems and machines it holds on."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.run import locks
from rl_engine.run.checks import check_place
from rl_engine.run.output import Beginning, dry_output, sole_writer
from rl_engine.sweep.work.runs import sole_user
from tests.helpers.made_run import config_in, contents, made_run


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, Lustre mounted without `flock`."""

    def none_here(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none_here)
    told = rf"^output_dir: {tmp_path}/\S+/.lock cannot be locked \(Function not implemented\), .* on a file system with"
    for place in (sole_writer(config_in(tmp_path / "run"), overwrite=False), sole_user(tmp_path / "sweep")):
        with pytest.raises(ConfigError, match=told), place:
            raise AssertionError("it went on")
    with pytest.raises(ConfigError, match=told):  # the lock's file exists by now
        check_place(config_in(tmp_path / "run"), resume=False, overwrite=False)


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = made_run(run)
    with sole_writer(config_in(run), overwrite=False):
        for refused in (
            lambda: sole_writer(config_in(run), overwrite=True).__enter__(),
            lambda: dry_output(config_in(run), Beginning(resume=True)),
        ):
            with pytest.raises(
                ConfigError, match=f"another process is training in {run}: wait for it, or .*output_dir$"
            ):
                refused()
        assert contents(run) == {**before, ".lock": b""}


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_of_mpi_or_slurm_are_told_how_to_be_one_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`srun python -m rl_engine.train` starts as many runs as there are processes, in one directory."""
    with sole_writer(config_in(tmp_path), overwrite=False):
        for value, settled, said in (("2", None, True), ("1", None, False), ("2", "2", False)):
            monkeypatch.setenv(name, value)
            monkeypatch.delenv("WORLD_SIZE", raising=False)
            if settled is not None:
                monkeypatch.setenv("WORLD_SIZE", settled)
            with pytest.raises(ConfigError) as refused:
                sole_writer(config_in(tmp_path), overwrite=False).__enter__()
            told = f"; {name} is 2, and these processes are ranks of one run only if each is told RANK, WORLD_SIZE"
            assert (told in str(refused.value)) == said


def test_locks_are_asked_for_as_nfs_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2): on NFS an exclusive lock needs a file that is open for writing, and a shared one a file open for
    reading."""
    flock = fcntl.flock

    def over_nfs(file: Any, operation: int) -> None:
        unfit = os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == unfit:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", over_nfs)
    run = tmp_path / "run"
    with sole_writer(config_in(run), overwrite=False):
        made_run(run)
    check_place(config_in(run), resume=True, overwrite=False)
    assert "starts from the beginning" in "\n".join(dry_output(config_in(run), Beginning(resume=True)))


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        ("nfs4 host:/x rw,vers=4.2,local_lock=none", ""), ("nfs host:/x rw,vers=3,nolock,local_lock=all", "nolock"),
        ("nfs host:/x rw,vers=3,local_lock=posix", ""), ("nfs host:/x rw,vers=3,local_lock=flock", "local_lock=flock"),
        ("lustre x@tcp:/y rw,flock", ""), ("lustre x@tcp:/y rw,localflock", "localflock"), ("ext4 /dev/sda rw", ""),
    ],
)  # fmt: skip
def test_locks_that_other_machines_take_too_are_reported(
    mount: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines could train in one directory, each with the lock."""
    place = tmp_path / "with space"
    point = str(place).replace(" ", r"\040")
    mounts = f"1 0 0:1 / / rw - ext4 /dev/root rw\n2 1 0:2 / {point} rw shared:1 - {mount}\n"
    monkeypatch.setattr(locks, "MOUNTS", written := tmp_path / "mountinfo")
    written.write_text(mounts)
    told: list[str] = []
    with sole_writer(config_in(place / "run"), overwrite=False, say=told.append):
        pass
    with sole_writer(config_in(tmp_path / "run"), overwrite=False, say=told.append):
        pass
    kind = mount.split()[0]
    expected = f"warning: output_dir: {place}/run is on {kind} ({options}), whose locks hold only within one machine: "
    assert [line.startswith(expected) for line in told] == ([True] if options else [])


def test_a_lock_of_somebody_else_keeps_what_it_holds(make_config: Callable[..., Config]) -> None:
    config = make_config()
    run = Path(config.output_dir)
    run.mkdir()
    (run / ".lock").write_text("mine\n")
    with sole_writer(config, overwrite=False):
        pass
    assert contents(run) == {".lock": b"mine\n"}
