"""What a run directory records about the processes that made it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.origin.inputs import pin_revision
from rl_engine.run.origin.starts import STARTS, read_starts, wall_s
from rl_engine.run.output import check_output
from rl_engine.run.records import WRITTEN, Records
from rl_engine.train.resolve import pinned
from rollout.models import EMBEDDED_DIR


def test_every_process_is_noted_and_a_new_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    both[0]["began"] = "2999-01-01T00:00:00+00:00"  # the clock was set back meanwhile
    assert wall_s(both) is None
    records.open(-1)
    assert len(read_starts(tmp_path)) == 1
    assert STARTS in WRITTEN


def test_what_a_run_reads_is_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run learns a change to its base model's weights, so those must stay. A reward's code may be corrected, which is
    reported."""
    monkeypatch.chdir(tmp_path)
    base, run, reward = tmp_path / "base", tmp_path / "run", tmp_path / "my_reward.py"
    shutil.copytree(EMBEDDED_DIR, base)
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"norm": "model-00001-of-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "consolidated.safetensors").write_text("the same in Mistral's own format")
    reward.write_text("def score(completion): return 1.0\n")
    given = [f"output_dir={run}", f"model.name={base}", "rewards.function=my_reward:score", "log.tensorboard=false"]
    config = load_config("quickstart.yaml", given)
    records = Records(run, config)
    records.open(-1)
    (run / "checkpoints" / "step000001").mkdir(parents=True)
    assert check_output(config, resume=True) == []
    (base / "consolidated.safetensors").unlink()
    assert check_output(config, resume=True) == []
    reward.write_text("def score(completion): return 2.0\n")
    (told,) = check_output(config, resume=True)
    assert told.startswith(f"warning: rewards.function: {reward} has changed since the run last trained: ")
    records.open(1)
    assert check_output(config, resume=True) == []
    weights = base / "model-00001-of-00001.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ConfigError, match=r"^model.name \(.*base\): its weights have changed since the run in .*run "):
        check_output(config, resume=True)
    assert read_starts(run)[0].pop("inputs").keys() == {"model.name", "rewards.function"}


def test_another_number_of_ranks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They add up gradients in another order, and no key of the configuration says how many there are."""
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"])
    Records(tmp_path, config).open(-1)
    (tmp_path / "checkpoints" / "step000001").mkdir(parents=True)
    assert check_output(config, resume=True) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    (told,) = check_output(config, resume=True)
    assert told == (
        "the number of ranks was 1, and is 2: from here on the run equals an uninterrupted one up to "
        "rounding, no longer bit for bit"
    )
    Records(tmp_path, config).open(1)
    assert check_output(config, resume=True) == []


@pytest.fixture
def newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the newest commit of acme/tiny, downloaded at the commits aaa and bbb. The hub is not asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--acme--tiny"
    for commit in ("aaa", "bbb"):
        (repo / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(EMBEDDED_DIR / "config.json", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("aaa")
    return repo / "refs" / "main"


def test_a_resumed_run_keeps_its_commit_on_the_hub(newest: Path, tmp_path: Path) -> None:
    """It used to take the newest: what was trained for one model went on with another, without a word."""
    run = tmp_path / "run"
    config = load_config("quickstart.yaml", ["model.name=acme/tiny", f"output_dir={run}", "log.tensorboard=false"])
    began = pin_revision(config, resume=True)  # there is no run yet
    assert began.model.revision == "aaa"
    Records(run, began).open(-1)
    (run / "checkpoints" / "step000001").mkdir(parents=True)
    newest.write_text("bbb")
    assert check_output(config, resume=True) == []
    assert pin_revision(config, resume=True) == began
    assert pin_revision(config, resume=False).model.revision == "bbb"
    given = config.with_values("model", revision="bbb")
    assert pin_revision(given, resume=True) is given
    with pytest.raises(ConfigError, match=r"model\.revision was 'aaa' and is 'bbb'"):
        check_output(given, resume=True)
    (run / "config.yaml").unlink()
    assert pin_revision(config, resume=True) == began
    (run / "config.yaml").write_text(config.to_yaml())  # as an earlier version wrote it
    (run / STARTS).unlink()
    assert pin_revision(config, resume=True) == config
    here = load_config("quickstart.yaml")
    assert pin_revision(here, resume=False) is here


def test_runs_together_have_the_commit_that_any_began_with(newest: Path, tmp_path: Path) -> None:
    """Some begin, some go on, and of some an earlier version noted no commit: those go on with the newest."""
    settings = ["model.name=acme/tiny", "log.tensorboard=false"]
    new, half, old = (
        load_config("quickstart.yaml", [*settings, f"output_dir={tmp_path / name}"]) for name in ("new", "half", "old")
    )
    Records(tmp_path / "half", pin_revision(half, resume=False)).open(-1)
    Records(tmp_path / "old", old).open(-1)

    def revisions(*configs: Config) -> list[str | None]:
        return [config.model.revision for config in pinned(configs, resume=True)]

    assert revisions(new, half, old) == ["aaa", "aaa", None]
    newest.write_text("bbb")
    assert revisions(new, half) == ["aaa", "aaa"]
    assert revisions(new, old) == ["bbb", None]
    assert [config.model.revision for config in pinned([new, half], resume=False)] == ["bbb", "bbb"]
    with pytest.raises(ConfigError, match=r"began with different commits of it .*half with aaa, .*old with bbb"):
        pinned([new, half, old], resume=True)


def test_a_run_of_an_earlier_version_has_no_notes(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
    assert wall_s([]) is None
