"""`python -m rl_engine.merge`: what is merged, what is refused, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from evals.protocol.training_protocol import training_protocol
from rl_engine.merge.__main__ import app
from rollout.adapters import AdapterStore, write_manifest
from rollout.files.exclusive import exclusive
from rollout.models import EMBEDDED_DIR
from tests.helpers.run_directories import trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("merged") / "run"
    trained_run(run)
    return run


def merge(adapter: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["--adapter", str(adapter), "--output", str(output), *more])


def test_a_run_is_merged_as_peft_would(run: Path, tmp_path: Path) -> None:
    """A run stands for its newest version if nothing says which one is best."""
    result = merge(run, tmp_path / "models" / "merged")
    assert result.exit_code == 0, result.output
    assert "embedded + " in result.stdout
    assert "v000003 → " in result.stdout
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "merged").state_dict()
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, run / "adapters" / "v000003").merge_and_unload().state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "models" / "merged").chat_template
    trained, own = training_protocol(tmp_path / "models" / "merged"), training_protocol(run / "adapters" / "v000003")
    assert trained is not None
    assert own is not None
    assert trained == replace(own, origin=tmp_path / "models/merged/run/config.yaml")
    assert json.loads((tmp_path / "models/merged/run/manifest.json").read_text())["version"] == 3


def test_a_merge_succeeds_where_nobody_hears_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output goes to a full disk."""
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        app(["--adapter", str(run), "--output", str(tmp_path / "merged")], standalone_mode=False)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_best_version_of_a_run_comes_first(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    AdapterStore(copy / "adapters").point("best", 0)
    best = merge(copy, tmp_path / "merged").stdout
    assert f"{copy} is a run: using its best version, v000000 (no score was higher than" in best
    assert "v000000 → " in best
    latest = merge(copy / "adapters" / "latest", tmp_path / "latest").stdout
    assert "v000003 → " in latest
    assert "is a run" not in latest


@pytest.mark.parametrize("there", ["a file", "a directory", "a broken link"])
def test_nothing_is_replaced(there: str, run: Path, tmp_path: Path) -> None:
    place = tmp_path / "taken"
    if there == "a file":
        place.write_text("mine")
    elif there == "a directory":
        place.mkdir()
        (place / "mine").write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    result = merge(run, place)
    assert result.exit_code == 2
    assert (
        result.stderr == f"error: --output: {place} already exists, and nothing is replaced: give another directory\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_what_another_makes_meanwhile_is_not_replaced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "merged"
    inside = merge(run, run / "adapters" / "mine")
    assert f"error: --output: {run}/adapters/mine is in {run}/adapters, which the run in {run} writes" in inside.stderr
    with exclusive(place):
        assert f"error: --output: another process is at work on {place} (" in merge(run, place).stderr

    def made_elsewhere(*_: Any) -> None:
        place.mkdir()
        (place / "mine").write_text("mine")

    monkeypatch.setattr("rl_engine.merge.weights.merge", made_elsewhere)
    assert f"--output: {place} already exists, and nothing is replaced" in merge(run, place).stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["merged", "mine"]


def test_what_cannot_be_merged_is_one_line(run: Path, tmp_path: Path) -> None:
    def told(adapter: Path, output: str = "merged", *more: str) -> str:
        result = merge(adapter, tmp_path / output, *more)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
        return result.stderr

    assert "no such directory" in told(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no effect: the base model is in" in told(run, "merged", "--base-model", "other/model")
    assert "is neither a published version (no manifest.json) nor a run" in told(tmp_path / "empty")
    (tmp_path / "file").touch()
    assert "file is not a directory" in told(run, "file/merged")
    whole = tmp_path / "whole"
    shutil.copytree(run / "adapters" / "v000003", whole)
    manifest = json.loads((whole / "manifest.json").read_text())
    write_manifest(
        whole, {name: value for name, value in manifest.items() if name not in ("files", "format")} | {"kind": "full"}
    )
    assert "holds a whole model (method: full)" in told(whole)
    moved = tmp_path / "moved"
    shutil.copytree(run / "adapters" / "v000003", moved)
    peft = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(peft | {"base_model_name_or_path": "/gone/model"}))
    write_manifest(
        moved, {k: v for k, v in manifest.items() if k not in ("files", "format")} | {"base_model": "/gone/model"}
    )
    assert "the base model model is not where the run loaded it from; give --base-model" in told(moved)
    cut = Path(shutil.copytree(EMBEDDED_DIR, tmp_path / "cut")) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert f"the base model: {cut} is damaged" in told(moved, "merged", "--base-model", str(cut.parent))
    assert not (tmp_path / "merged").exists()
    assert merge(moved, tmp_path / "merged", "--base-model", str(EMBEDDED_DIR)).exit_code == 0


def test_the_current_directory_is_no_output(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = merge(run.absolute(), Path())
    assert result.stderr == "error: --output: '.' is an existing place, not a new one: name a new directory\n"


def test_a_base_that_is_another_model_by_now_is_one_line(tmp_path: Path) -> None:
    base = Path(shutil.copytree(EMBEDDED_DIR, tmp_path / "base"))
    trained_run(tmp_path / "run", f"model.name={base}")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "intermediate_size": 256}))
    result = merge(tmp_path / "run", tmp_path / "merged")
    assert result.exit_code == 2, result.output
    assert f"does not fit {base}: at model.layers.0.mlp." in result.output
    assert not (tmp_path / "merged").exists()
