"""A run to release, and a stand-in for the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_engine.policy.lora.adapter import LoraPolicy
from tests.helpers.hub_standin import Hub, standing_in, use
from tests.helpers.run_directories import trained_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoraPolicy]:
    """A run with every kind of path in its configuration, and its model as the learner holds it."""
    root = tmp_path_factory.mktemp("made")
    paths = [
        "data.source=jsonl",
        f"data.path={root}/data/train problems.jsonl",
        f"eval.data_dir={root}/suites",
        f"eval.suites=[held_out,math500,{root}/suites/mine.jsonl]",
        "sampling.stop=[/no/path]",
        "rewards.function=some.module:name",
        f"rewards.function_arguments={{table: {root}/table.csv, nested: [{{more: ~/x.bin}}]}}",
    ]
    run = root / "run"
    return run, trained_run(run, "lora.rank=2", *paths)


@pytest.fixture
def run(trained: tuple[Path, LoraPolicy], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run", symlinks=True))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with standing_in() as hub:
        use(hub, monkeypatch, tmp_path)
        yield hub
