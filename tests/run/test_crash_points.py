"""What a run writes, with the process killed before every single file operation: the old or the new, never a half.

The work is done in a fork that ends itself, as kill -9 would, at its n-th operation, for n = 1, 2, … until it
completes. What a power failure would lose is covered only by the order in which files are synced and renamed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from rl_engine.config import load_config
from rl_engine.run.checkpoint import Checkpoints, RunState
from rl_engine.run.origin import starts
from rl_engine.run.records import Records, read_metrics
from rollout.adapters import AdapterStore
from rollout.files.durable import write_synced
from rollout.files.ownership import MARKER

OPERATIONS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"}


def survives(operation: int, work: Callable[[], object]) -> bool:
    """Whether the work completed without reaching its n-th file operation, at which it is killed."""
    child = os.fork()
    if child == 0:
        left = operation

        def count_down(event: str, _: Any) -> None:
            nonlocal left
            if event in OPERATIONS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(count_down)
            work()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def every_crash(
    place: Path,
    before: Callable[[Path], object],
    work: Callable[[Path], object],
    check: Callable[[Path], int],
    after: Callable[[Path], object],
) -> list[int]:
    """What `check` finds after each crash, and finally after none. Each time, `after` cleans up what was left."""
    found = []
    for operation in range(1, 200):
        root = place / str(operation)
        before(root)
        through = survives(operation, lambda: work(root))  # noqa: B023 - called at once
        found.append(check(root))
        after(root)
        assert [path.name for path in root.rglob(".*") if path.name != MARKER] == []
        if through:
            return found
    raise AssertionError("the work never got through")


def state_of(step: int) -> RunState:
    return RunState(step=step, position=step, version=step, config_hash="h")


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((50,), float(step)), "b": torch.tensor(step)}


def newest_step(root: Path, keep: int) -> int:
    found = Checkpoints(root, keep).newest()
    assert found is not None
    state, tensors = found
    for name, tensor in tensors_of(state.step).items():
        assert torch.equal(tensors[name], tensor)
    return state.step


def test_a_checkpoint_is_complete_or_absent(tmp_path: Path) -> None:
    """The previous checkpoint stays until the new one is complete."""
    keep = 1

    def save(*steps: int) -> Callable[[Path], None]:
        def work(root: Path) -> None:
            for step in steps:
                Checkpoints(root, keep).save(state_of(step), tensors_of(step))

        return work

    found = every_crash(tmp_path, save(1, 2), save(3), lambda root: newest_step(root, keep), save(4))
    assert set(found) == {2, 3}
    assert found == sorted(found)
    assert len(found) > 10


def test_a_published_version_is_complete_or_absent(tmp_path: Path) -> None:
    """`latest` names a complete version at any time."""

    def write(directory: Path) -> None:
        save_file({"w": torch.ones(20)}, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text("{}")

    def publish(root: Path, version: int) -> None:
        AdapterStore(root).publish(version, write, {"rank": 1})

    def before(root: Path) -> None:
        for version in (0, 1):
            publish(root, version)

    def work(root: Path) -> None:
        AdapterStore(root).delete(0)
        publish(root, 2)

    def check(root: Path) -> int:
        store = AdapterStore(root)
        for version in store.versions():
            store.open(version)
        latest = store.pointed("latest")
        assert latest in store.versions()
        return latest

    found = every_crash(tmp_path, before, work, check, lambda root: publish(root, 3))
    assert set(found) == {1, 2}
    assert len(found) > 10


def test_nothing_is_renamed_into_place_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(what: str, function: Callable[..., object], path_of: Callable[[Any], Path]) -> Callable[..., object]:
        def call(first: Any, *others: Any) -> object:
            done.append(f"{what} {path_of(first).relative_to(tmp_path)}")
            return function(first, *others)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync, lambda number: Path(f"/proc/self/fd/{number}").readlink()))
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, noted("move", getattr(Path, name), lambda path: path))
    Checkpoints(tmp_path, 1).save(state_of(1), tensors_of(1))
    files = [f"sync .step000001.partial/{name}" for name in ("learner.safetensors", "manifest.json", "state.json")]
    moved = ["move step000001", "move .step000001.partial", "sync ."]  # what was there before is moved away first
    assert (sorted(done[:3]), done[3:]) == (files, ["sync .step000001.partial", *moved])
    done.clear()
    write_synced(tmp_path / "config.yaml", "seed: 0")
    assert done == ["sync .config.yaml.partial", "move .config.yaml.partial", "sync ."]


def test_going_on_from_a_checkpoint_can_be_cut_off_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading these opens a file for each package, and writes nothing.
    monkeypatch.setattr(starts, "package_versions", dict)
    monkeypatch.setattr(starts, "commit", lambda: None)
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path / 'run'}", "log.tensorboard=false"])
    changed = config.with_values("eval", every=1)

    def before(root: Path) -> None:
        records = Records(root, config)
        records.open(-1)
        (root / "rollouts").mkdir()
        for step in range(4):
            records.metrics({"step": step})
            (root / "rollouts" / f"step{step:06d}.jsonl.gz").write_bytes(b"")

    def check(root: Path) -> int:
        written = yaml.safe_load((root / "config.yaml").read_text())
        assert written in (config.model_dump(mode="json"), changed.model_dump(mode="json"))
        steps = [line["step"] for line in read_metrics(root)]
        assert steps in ([0, 1, 2, 3], [0, 1])
        return len(steps) + len(list((root / "rollouts").iterdir()))

    def go_on(root: Path) -> None:
        Records(root, changed).open(1)

    found = every_crash(tmp_path, before, go_on, check, go_on)
    assert set(found) == {8, 6, 5, 4}
