"""What a release holds, and what happens to one that already exists."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rl_engine.config import Config
from rl_engine.push.__main__ import app
from rl_engine.push.release import files_of
from rl_engine.report.page import write_report
from rl_engine.run.trained_adapter import read_trained
from rollout.adapters import AdapterError, read_manifest
from rollout.files.exclusive import OccupiedError, exclusive
from rollout.models import EMBEDDED_DIR
from tests.helpers.releases import REPO, release, rename_base
from tests.helpers.run_directories import CURVES, LAST, trained_run


def test_a_release_holds_the_run_and_not_a_path_of_the_machine(run: Path, tmp_path: Path) -> None:
    folder = release(run, tmp_path / "folder")
    assert [str(path) for path in files_of(folder)] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "curves.png",
        "manifest.json",
        "run/config.yaml",
        "run/evals/held_out-policy-v000000.json",
        "run/evals/held_out-policy-v000003.json",
        "run/metrics.jsonl",
        "run/report.html",
    ]
    source = run / "adapters" / "v000003"
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (source / weights).read_bytes()
    assert (folder / "run/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert (folder / "curves.png").read_bytes() == CURVES
    for path in files_of(folder):
        text = (folder / path).read_bytes().decode(errors="replace")
        assert not re.findall(rf"{re.escape(str(tmp_path.parent.parent))}|{Path.home()}/|{Path.cwd()}|/tmp/", text), (
            path
        )
    assert "policy-v000003" in (folder / "run/report.html").read_text()


PROBLEM, ANSWER, COMPLETION = "what is the colour of the heron", "ANSWER-OF-IT", "I think it is grey"


def with_rollouts(run: Path) -> None:
    """Add a step whose problem, reference and completion are easy to search for."""
    row = {"step": 1, "problem_id": "heron-17", "problem": PROBLEM, "reference": ANSWER, "prompt": f"{PROBLEM}?"}
    row |= {"completion": COMPLETION, "extracted": None, "verdict": "correct", "reward": 1.0, "advantage": 0.5}
    row |= {"adapter": "policy-v000000", "completion_tokens": 4, "finish_reason": "stop"}
    (run / "rollouts").mkdir()
    with gzip.open(run / "rollouts" / "step000001.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    write_report([run], run / "report.html")


@pytest.mark.parametrize("asked", [False, True])
def test_training_problems_are_published_only_when_asked_for(run: Path, tmp_path: Path, asked: bool) -> None:
    with_rollouts(run)
    assert PROBLEM in (run / "report.html").read_text()
    folder = release(run, tmp_path / "folder", completions=asked)
    holders = [
        str(path)
        for path in files_of(folder)
        for text in [(folder / path).read_bytes().decode(errors="replace")]
        if any(words in text for words in (PROBLEM, ANSWER, COMPLETION, "heron-17"))
    ]
    assert holders == (["run/report.html"] if asked else [])
    page = (folder / "run/report.html").read_text()
    assert "<dt>Machine</dt>" in page
    assert "<dt>Command</dt>" not in page  # it may name any path
    assert not re.findall(rf"{tmp_path}|{Path.home()}/|{Path.cwd()}", (folder / "run/report.html").read_text())


def test_the_released_configuration_differs_in_its_paths_alone(run: Path, tmp_path: Path) -> None:
    """It still runs."""
    folder = release(run, tmp_path / "folder")
    before = yaml.safe_load((run / "config.yaml").read_text())
    after = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert Config.model_validate(after).lora.rank == 2
    assert after["sampling"]["stop"] == ["/no/path"]  # a stop string is not a path, even if it looks like one
    assert after["data"].pop("path") == "train problems.jsonl"
    assert after["eval"].pop("data_dir") == "suites"
    assert after["eval"].pop("suites") == ["held_out", "math500", "mine.jsonl"]
    assert after["rewards"].pop("function_arguments") == {"table": "table.csv", "nested": [{"more": "x.bin"}]}
    assert after.pop("output_dir") == "run"
    for section, key in (("data", "path"), ("eval", "data_dir"), ("eval", "suites"), ("rewards", "function_arguments")):
        before[section].pop(key)
    before.pop("output_dir")
    assert after == before


def test_the_manifest_vouches_for_the_release(run: Path, tmp_path: Path) -> None:
    folder = release(run, tmp_path / "folder")
    manifest = read_manifest(folder)
    source = read_manifest(run / "adapters" / "v000003")
    assert manifest["files"]["adapter_model.safetensors"] == source["files"]["adapter_model.safetensors"]
    assert (manifest["version"], manifest["base_model"]) == (LAST, "embedded")
    # A release can be read and pushed again, with what its own files say.
    again = read_trained(folder, None)
    assert (again.version, again.base.name, again.run) == ("v000003", "embedded", None)


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    """Even while a line of its metrics is being written."""
    first = release(run, tmp_path / "a")
    assert (first / "run/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "rew')
    second = release(run, tmp_path / "b")
    assert files_of(first) == files_of(second)
    for path in files_of(first):
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_a_directory_that_is_no_release_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a release"):
        release(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    folder = release(run, tmp_path / "folder")
    (folder / "run/evals/old.json").write_text("{}")
    release(run, folder)
    assert not (folder / "run/evals/old.json").exists()
    (tmp_path / "link").symlink_to(folder)
    for place, said in (
        (run / "adapters/mine", "adapters, which the run in"),
        (run / "config.yaml", "is not a directory"),
        (tmp_path / "link", "is a link"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=f"^--output: .*{said}"):
            release(run, place)
    with exclusive(folder), pytest.raises(OccupiedError, match="another process is at work on"):
        release(run, folder)


def test_a_release_that_was_worked_on_is_kept_aside(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run, an hour of work on the model card, and then the push."""
    folder = release(run, tmp_path / "folder")
    release(run, folder)
    assert capsys.readouterr().out == ""
    (folder / "README.md").write_text("an hour of work")
    (folder / "notes.txt").write_text("mine")
    release(run, folder)
    kept = tmp_path / "folder.old-1"
    assert f"has been edited: it is kept in {kept}" in capsys.readouterr().out
    assert ((kept / "README.md").read_text(), (kept / "notes.txt").read_text()) == ("an hour of work", "mine")
    assert not (folder / "notes.txt").exists()


def test_a_whole_model_is_no_adapter(run: Path) -> None:
    manifest = run / "adapters/v000003/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "kind": "full"}))
    with pytest.raises(AdapterError, match="and an adapter is needed here"):
        read_trained(manifest.parent, None)


def test_what_lies_in_a_runs_directory_is_passed_over_or_named(run: Path) -> None:
    """Other JSON files are not taken for evaluations; damaged ones are reported by name, in one line."""
    before = read_trained(run / "adapters/latest", None).run
    for name, text in (
        ("list", "[1]"),
        ("mine", '{"suite": "x"}'),
        ("rows", '{"suites": [{"rows": [{}]}]}'),
        ("n", "3"),
    ):
        (run / "evals" / f"{name}.json").write_text(text)
    after = read_trained(run / "adapters/latest", None).run
    assert before is not None
    assert after is not None
    assert after.evaluations == before.evaluations
    for name, text, told in (("evals/torn.json", "{", "is not JSON"), ("config.yaml", "a: [", "is damaged")):
        (run / name).write_text(text)
        result = CliRunner().invoke(app, ["--adapter", str(run), "--repo", REPO, "--dry-run"])
        assert result.exit_code == 2
        assert f"{name} {told}" in result.output
        (run / name).unlink()


@pytest.mark.parametrize("name", ["models/mine", "./models/mine/", "../here/models/mine"])
def test_no_file_says_where_the_base_model_lay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path relative to where the run was started also tells about the machine, and reads like an id on the hub."""
    here = tmp_path / "here"
    shutil.copytree(EMBEDDED_DIR, here / "models" / "mine")
    monkeypatch.chdir(here)
    trained_run(here / "run", f"model.name={name}")
    (here / "run" / "report.html").write_text(f"<p>{name}</p>")
    folder = release(here / "run", tmp_path / "folder", merged="float32")
    assert not [path for path in files_of(folder) if re.search(rb"models/mine|/here", (folder / path).read_bytes())]
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["model"]["name"] == "mine"


def test_another_base_model_than_the_runs_is_refused(run: Path) -> None:
    rename_base(run, "org/base", "org/base")
    assert read_trained(run / "adapters/latest", "org/base").base.hub_id == "org/base"
    with pytest.raises(ValueError, match="was trained on 'org/base'"):
        read_trained(run / "adapters/latest", "org/other")
