"""The output directory: who owns it, and what may continue in it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.checks import check_place
from rl_engine.run.output import Beginning, Earlier, check_output, dry_output, sole_writer
from rl_engine.run.records import Records
from rl_engine.sft.__main__ import app as sft
from rl_engine.train.__main__ import app as train
from rollout.stopping import Stopped, StopRequest
from tests.helpers.made_run import config_in, contents, made_run


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("run/adapters", "is in .*/run/adapters, which the run in .*/run writes, and removes"),
        ("run/checkpoints/step000002/mine", "is in .*/run/checkpoints, which the run in"),
        ("/", "is the root of the file system"),
        ("$HOME/mine", r"contains '\$HOME', a shell pattern or variable"),
        ("runs/*", r"contains '\*', a shell pattern"),
    ],
)
def test_no_run_begins_where_it_would_be_lost(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made_run(Path("run"))
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"^output_dir: {re.escape(place)} {said}"):
            check_place(config_in(Path(place)), resume=False, overwrite=overwrite)
    check_place(config_in(Path("run/mine")), resume=False, overwrite=False)


@pytest.mark.parametrize("options", [{"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}])
def test_a_lock_that_may_not_be_written_is_named(
    options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a copy of a read-only run. Tests may run as root, who may write anything."""
    made_run(tmp_path)
    (tmp_path / ".lock").touch()
    monkeypatch.setattr(os, "access", lambda path, how: Path(path).name != ".lock" or not how & os.W_OK)
    for user, way in ((os.geteuid(), "chmod -R u"), (os.geteuid() + 1, r"its owner can allow it \(chmod -R a")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        with pytest.raises(ConfigError, match=rf"^output_dir: this user may not write {tmp_path}/\.lock: {way}"):
            check_place(config_in(tmp_path), **options)


def test_a_run_is_not_moved_aside_from_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, a container's volume: nothing is renamed from one file system to another."""
    run = tmp_path / "run"
    before = made_run(run)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == run)
    for refused in (
        lambda: check_place(config_in(run), resume=False, overwrite=True),
        lambda: dry_output(config_in(run), Beginning(overwrite=True)),
        lambda: sole_writer(config_in(run), overwrite=True).__enter__(),
    ):
        with pytest.raises(ConfigError, match=f"^output_dir: {run} is a mount point, so --overwrite cannot"):
            refused()
    assert contents(run) == before | {".lock": b""}
    check_place(config_in(run), resume=True, overwrite=False)


def test_the_working_directory_s_run_is_kept_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    with sole_writer(config_in(Path()), overwrite=True):
        assert (tmp_path / "run.old-1" / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
    assert contents(tmp_path / "run") == before | {".lock": b""}


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    """The recorded output_dir is the old place. A copy records it too, and would resume the original."""
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    made_run(old)
    link.symlink_to(old)
    assert load_config(str(link / "config.yaml")).output_dir == str(old)
    shutil.copytree(old, new)
    assert load_config(str(new / "config.yaml")).output_dir == str(new)
    assert load_config(str(new / "config.yaml"), [f"output_dir={old}"]).output_dir == str(old)
    edited = (new / "config.yaml").read_text().replace(f"output_dir: {old}\n", "output_dir: runs/mine\n")
    (new / "config.yaml").write_text(edited)
    assert load_config(str(new / "config.yaml")).output_dir == "runs/mine"
    for marker in ("Written by a run of an earlier version.\n", 'output_dir: "cut sho', "\0\0"):
        (new / ".rl_engine").write_text(marker)
        assert load_config(str(new / "config.yaml")).output_dir == str(new)
    shutil.copyfile(old / "config.yaml", tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")).output_dir == str(old)


def steps_in(run: Path, earlier: Earlier | None, steps: int) -> None:
    """Record what a new run does in the directory; line 0 is the evaluation before the first step."""
    assert earlier is not None
    records = Records(run, config_in(run, "seed=1"), on_first_step=earlier.move_aside)
    records.open(-1)
    (run / "adapters" / "v000000").mkdir(parents=True)
    for step in range(steps):
        records.metrics({"step": step})


def test_an_overwritten_run_goes_with_the_first_step(tmp_path: Path) -> None:
    """It goes while the new run continues. Nothing but what runs write goes with it, and what goes is reported."""
    run, told = tmp_path / "run", list[str]()
    before = made_run(run)
    with sole_writer(config_in(run, "seed=1"), overwrite=True, say=told.append) as earlier:
        aside = tmp_path / "run.old-1"
        assert contents(run) == {".lock": b"", "src/code.py": b"mine = 1\n", "thesis.txt": b"mine\n"}
        assert contents(aside) == {name: text for name, text in before.items() if name not in contents(run)}
        assert f"(1 steps, other settings: seed was 0 and is 1) is in {aside}" in told[0]
        steps_in(run, earlier, 1)
        assert aside.exists()
        Records(run, config_in(run)).on_first_step()
        steps_in(run / "other", earlier, 2)
        assert not aside.exists()
        assert told[1:] == [f"the earlier run is removed from {aside}"]
        again = Records(run, config_in(run, "seed=1"))
        again.open(0)
        again.metrics({"step": 1})
    assert told[2:] == []
    assert (run / "src" / "code.py").read_text() == "mine = 1\n"
    assert "seed: 1" in (run / "config.yaml").read_text()


def test_what_cannot_be_deleted_of_it_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, a file that TensorBoard has open stays, under another name, and its directory with it."""
    run, told = tmp_path / "run", list[str]()
    made_run(run)
    rmdir = os.rmdir

    def over_nfs(path: str, **settings: int) -> None:
        if path == "adapters":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        rmdir(path, **settings)

    with sole_writer(config_in(run), overwrite=True, say=told.append) as earlier:
        monkeypatch.setattr(os, "rmdir", over_nfs)
        steps_in(run, earlier, 2)
    assert told[1:] == [f"the earlier run is removed from {tmp_path / 'run.old-1'} but for what could not be deleted"]
    assert [path.name for path in (tmp_path / "run.old-1").iterdir()] == ["adapters"]


@pytest.mark.parametrize("asked", [True, False])
def test_an_overwritten_run_can_be_kept(asked: bool, tmp_path: Path) -> None:
    """So it is where somebody has written another directory into its configuration, and meant the new run."""
    run, told = tmp_path / "run", list[str]()
    before = made_run(run)
    if not asked:
        (run / "config.yaml").write_text(config_in(tmp_path / "other").to_yaml())
        before = contents(run)
    config = load_config(str(run / "config.yaml"), [f"output_dir={run}", "log.tensorboard=false"])
    assert "run.old-1, kept there" in dry_output(config, Beginning(overwrite=True, keep_old=asked))[0]
    with sole_writer(config, overwrite=True, keep=asked, say=told.append) as earlier:
        steps_in(run, earlier, 2)
    kept = contents(tmp_path / "run.old-1")
    assert kept == {name: text for name, text in before.items() if not name.startswith(("src", "thesis"))}
    assert "the same settings" in told[0]
    assert told[1:] == [f"the earlier run is kept in {tmp_path / 'run.old-1'}"]


@pytest.mark.parametrize("becomes", ["removed", "moved", "replaced"])
def test_a_run_whose_directory_is_gone_writes_nothing_there(becomes: str, tmp_path: Path) -> None:
    """Nor does it take away the lock of a run that has begun there meanwhile."""
    run, left = tmp_path / "run", tmp_path / "left"
    config = load_config("quickstart.yaml", [f"output_dir={run}", "log.tensorboard=false"])
    with sole_writer(config, overwrite=False):
        records = Records(run, config)
        records.open(-1)
        records.metrics({"step": 0})
        run.rename(left) if becomes == "moved" else shutil.rmtree(run)
        if becomes == "replaced":
            run.mkdir()
            (run / ".lock").touch()

        def publish() -> None:
            with records.in_place():
                (run / "adapters" / "v000001").rename(run / "adapters" / "latest")

        writes: list[Callable[[], None]] = [
            lambda: records.metrics({"step": 1}),
            lambda: records.rollouts(1, [], []),
            publish,
        ]
        for write in writes:
            with pytest.raises(OSError, match="/run was moved, removed or replaced while this process trained in it"):
                write()
        records.close()
    found = {path.name for path in run.iterdir()} if run.exists() else None
    assert found == ({".lock"} if becomes == "replaced" else None)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_overwriting_run_takes_nothing_from_its_successor(steps: int, tmp_path: Path) -> None:
    """Its directory was moved, and a third run has begun there. Line 0 is no step."""
    run, left, told = tmp_path / "run", tmp_path / "left", list[str]()
    made_run(run)
    with sole_writer(config_in(run), overwrite=True, say=told.append) as earlier:
        steps_in(run, earlier, steps)
        run.rename(left)
        third = made_run(run, steps=1)
    assert contents(run) == third
    assert (tmp_path / "run.old-1").exists() == (steps == 1)
    assert told[1:] == [f"the earlier run is {'kept in' if steps == 1 else 'removed from'} {tmp_path / 'run.old-1'}"]


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    "end", [ValueError("misspelt"), KeyboardInterrupt(), SystemExit(143)], ids=lambda end: str(end)
)
def test_a_run_that_makes_no_step_gives_the_earlier_one_back(steps: int, end: BaseException, tmp_path: Path) -> None:
    """A misspelt target, a missing model, a failing evaluation or a signal: nothing was replaced."""
    run, told = tmp_path / "run", list[str]()
    before = made_run(run)
    (tmp_path / "run.old-1").mkdir()  # somebody else's

    def fail(earlier: Earlier | None) -> None:
        assert earlier is not None
        assert earlier.place == tmp_path / "run.old-2"
        if steps:
            steps_in(run, earlier, steps)
        raise end

    with pytest.raises(type(end)), sole_writer(config_in(run), overwrite=True, say=told.append) as earlier:
        fail(earlier)
    assert contents(run) == {**before, ".lock": b""}
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["run.old-1"]
    assert told[-1] == f"this run made no step: the earlier one is back in {run}"


def test_sigterm_before_a_run_listens_gives_the_earlier_one_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    before, stop = made_run(run), StopRequest()

    def preempted() -> None:
        with stop.listening(), sole_writer(config_in(run), overwrite=True):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    with pytest.raises(Stopped):
        preempted()
    assert stop.exit_code == 128 + signal.SIGTERM
    assert contents(run) == {**before, ".lock": b""}


def test_what_cannot_be_moved_aside_whole_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, if the directory is a mount point: half of a run beside it would be lost with the next one."""
    run = tmp_path / "run"
    before = made_run(run)
    rename = Path.rename

    def stubborn(path: Path, target: Path) -> Path:
        if path == run / "metrics.jsonl":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(OSError, match="cross-device"), sole_writer(config_in(run), overwrite=True):
        pass
    assert contents(run) == {**before, ".lock": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["config.yaml", "adapters", "report.html", "evals"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_without_our_mark_is_not_touched(
    name: str, overwrite: bool, make_config: Callable[..., Config]
) -> None:
    """Somebody's own folder, with an entry whose name runs write too."""
    config = make_config()
    run = Path(config.output_dir)
    run.mkdir()
    if "." in name:
        (run / name).write_text("mine\n")
    else:
        (run / name).mkdir()
    (run / "thesis.txt").write_text("mine\n")
    before = contents(run)
    with (
        pytest.raises(ConfigError, match=rf"holds {name} but is not known to be a run.*nothing in it was touched"),
        sole_writer(config, overwrite=overwrite),
    ):
        check_output(config, resume=False)
    with pytest.raises(ConfigError, match="is not known to be a run"):
        dry_output(config, Beginning(overwrite=overwrite))
    assert contents(run) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--resume continues it and --overwrite replaces it"),
        ({"resume": True}, "has no checkpoint: it starts from the beginning"),
        ({"overwrite": True}, "would move the earlier run (1 steps, other settings: seed was 0 and is 1) to "),
        ({"overwrite": True, "keep_old": True}, "run.old-1, kept there"),
    ],
)
def test_a_dry_run_says_what_would_become_of_an_earlier_run(
    options: dict[str, bool], words: str, tmp_path: Path
) -> None:
    """It does not ask for another output_dir."""
    run = tmp_path / "run"
    before = made_run(run)
    seed = [] if "resume" in options else ["seed=1"]
    told = dry_output(config_in(run, *seed), Beginning(**options))
    assert words in "\n".join(told)
    assert "output_dir" not in "\n".join(told)
    assert contents(run) == before


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}])
def test_a_dry_run_where_nothing_is(options: dict[str, bool], tmp_path: Path) -> None:
    told = dry_output(config_in(tmp_path / "run"), Beginning(**options))
    assert told == (
        [f"there is no run in {tmp_path / 'run'} to resume: this one starts from the beginning"] * ("resume" in options)
    )


@pytest.mark.parametrize("command", [train, sft])
@pytest.mark.parametrize("others", [[], ["--resume"]])
def test_only_a_run_that_is_replaced_can_be_kept(command: typer.Typer, others: list[str]) -> None:
    found = CliRunner().invoke(command, ["--config", "quickstart.yaml", "--keep-old", *others])
    assert found.exit_code == 2
    assert "--keep-old keeps the run that --overwrite replaces: give --overwrite too" in found.stderr


@pytest.mark.parametrize("command", [train, sft])
def test_continuing_and_replacing_contradict_each_other(command: typer.Typer) -> None:
    found = CliRunner().invoke(command, ["--config", "quickstart.yaml", "--resume", "--overwrite"])
    assert found.exit_code == 2
    assert "--resume continues the run in output_dir and --overwrite replaces it: give one of them" in found.stderr


def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(make_config: Callable[..., Config]) -> None:
    """Unless the user asks for that."""
    config = make_config("checkpoint.every=2", "log.tensorboard=false")
    run = Path(config.output_dir)
    records = Records(run, config)
    records.open(-1)
    for step in (0, 1, 2):  # the first checkpoint could not be written
        records.metrics({"step": step})
    check_output(config, resume=True)
    records.metrics({"step": 3})
    with pytest.raises(ConfigError, match=r"3 steps on record and no checkpoint.*checkpoint.every is 2"):
        check_output(config, resume=True)
    (run / "config.yaml").write_text(config.to_yaml().replace("\n  lr: 0.001\n", "\n  lr: 1e-3  # mine\n"))
    with pytest.raises(ConfigError, match=r"3 steps on record and no checkpoint"):
        check_output(config, resume=True)
    (run / "config.yaml").write_text("train: null\ncheckpoint: null\n")
    (run / "starts.jsonl").unlink()  # where the settings are too
    with pytest.raises(ConfigError, match=r"cannot be resumed with another configuration"):
        check_output(config, resume=True)
    (run / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        check_output(config, resume=True)
