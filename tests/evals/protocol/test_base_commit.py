"""The commit of the hub at which the base model of an evaluation is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from evals.options import wanted_of_hub
from evals.protocol.base_commit import revision_to_read
from rl_engine.config import load_config
from rollout.adapters import AdapterStore
from rollout.models import EMBEDDED_DIR
from tests.helpers.peft_adapters import write_peft
from tests.helpers.scripted_evaluation import measure, options_for, scripted

pytestmark = pytest.mark.usefixtures("one_grader")
MODEL = "acme/tiny"
AAA, BBB = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the model at the commits AAA and BBB, of which BBB is the newest. The hub is not asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--acme--tiny"
    for commit in (AAA, BBB):
        shutil.copytree(EMBEDDED_DIR, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(BBB)
    return repo


def run_at(directory: Path, commit: str | None, name: str = MODEL) -> str:
    """A run that trained on that commit, and has published a version."""
    store = AdapterStore(directory / "adapters")
    store.publish(7, lambda scratch: write_peft(scratch), {"rank": 2, "base_model": name})
    settings = [f"model.name={name}", f"model.revision={commit or 'null'}", f"output_dir={directory}"]
    (directory / "config.yaml").write_text(load_config("quickstart.yaml", settings).to_yaml())
    return str(directory)


def test_the_base_is_read_at_the_commit_of_the_training(hub: Path, tmp_path: Path) -> None:
    """The newest commit was read, whatever the adapter had been trained on, and nothing told which."""
    run = run_at(tmp_path / "mine", AAA)
    engine = scripted()
    options = options_for(tmp_path, Path(run), model=MODEL, limit=2, samples=1)
    (item,) = wanted_of_hub(options)
    assert item.revision == AAA
    told = measure(options, engine)
    assert f"base model acme/tiny at commit {AAA}" in told
    assert "warning" not in told
    assert engine.settings is not None
    assert engine.settings.revision == AAA
    assert json.loads((tmp_path / "out.json").read_text())["model"]["commit"] == AAA
    assert f"commit {AAA}" in (tmp_path / "out.md").read_text().partition("\n")[0]


def test_a_base_at_another_commit_is_told(hub: Path, tmp_path: Path) -> None:
    run = run_at(tmp_path / "mine", AAA)
    engine = scripted()
    told = measure(options_for(tmp_path, Path(run), model=MODEL, revision="main", limit=2, samples=1), engine)
    assert engine.settings is not None
    assert engine.settings.revision == BBB
    assert f"{run} was trained on acme/tiny at {AAA}, and is measured on it at {BBB}" in " ".join(told.split())


def test_the_branch_that_an_adapter_names_is_no_other_base(hub: Path, tmp_path: Path) -> None:
    """It was said to have been trained on main, and to be measured at another commit."""
    run = run_at(tmp_path / "mine", "main")
    told = measure(options_for(tmp_path, Path(run), model=MODEL, limit=2, samples=1), scripted())
    assert f"base model acme/tiny at commit {BBB}" in told
    assert "warning" not in told


def test_without_adapters_the_newest_is_read_once_and_told(hub: Path, tmp_path: Path) -> None:
    engine = scripted()
    options = options_for(tmp_path, tmp_path, model=MODEL, adapters=(), limit=2, samples=1)
    assert f"base model acme/tiny at commit {BBB}" in measure(options, engine)
    assert engine.settings is not None
    assert engine.settings.revision == BBB


def test_what_an_adapter_says_about_its_base(tmp_path: Path) -> None:
    one, other = run_at(tmp_path / "one", "aaa"), run_at(tmp_path / "other", "bbb")
    silent, foreign = run_at(tmp_path / "silent", None), run_at(tmp_path / "foreign", "ccc", "acme/else")
    assert revision_to_read(MODEL, None, [one, silent, foreign]) == "aaa"
    assert revision_to_read(MODEL, None, [silent, foreign]) is None
    assert revision_to_read("embedded", None, [one]) is None
    assert revision_to_read(MODEL, "ddd", [one, other]) == "ddd"
    with pytest.raises(ValueError, match=r"different revisions of acme/tiny \(.*one on aaa, b=.*other on bbb\)"):
        revision_to_read(MODEL, None, [one, f"b={other}"])
    write_peft(tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "adapter_config.json"
    stated = {"base_model_name_or_path": MODEL, "revision": "eee"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **stated}))
    assert revision_to_read(MODEL, None, [str(tmp_path / "elsewhere")]) == "eee"
