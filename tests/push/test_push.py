"""The upload of a release, which may fail anywhere, against a stand-in for the hub that the real huggingface_hub talks
to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard
from typer.testing import CliRunner, Result

from rl_engine.push import hub as hub_module
from rl_engine.push.__main__ import app
from rl_engine.push.hub import licence_of
from rl_engine.push.release import files_of
from rl_engine.run.trained_adapter import BaseModel
from rollout.adapters import AdapterStore
from tests.helpers.hub_standin import TOKEN, Hub, Repo, sha256, standing_in, use
from tests.helpers.run_directories import CURVES, report, trained_run
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]
REPO = "ada/sums"
Push = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    trained_run(run)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run", symlinks=True))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, with this process logged in."""
    with standing_in() as hub:
        use(hub, monkeypatch, tmp_path)
        monkeypatch.setattr(hub_module, "FIRST_WAIT_S", 0.01)
        yield hub


@pytest.fixture
def push(run: Path) -> Push:
    def push(*arguments: str, adapter: str = "latest") -> Result:
        return CliRunner().invoke(app, ["--adapter", str(run / "adapters" / adapter), "--repo", REPO, *arguments])

    return push


def released(run: Path, version: str = "v000003") -> dict[str, bytes]:
    folder = run / "release" / version
    return {str(path): (folder / path).read_bytes() for path in files_of(folder)}


def test_what_is_on_the_hub_is_the_folder_under_a_tag(hub: Hub, push: Push, run: Path) -> None:
    result = push()
    assert result.exit_code == 0, result.output
    assert f"published: {hub.url}/{REPO}/tree/v000003" in result.output
    repo = hub.repos[REPO]
    assert {**hub.files(REPO), ".gitattributes": b""} == {**released(run), ".gitattributes": b""}
    assert repo.tags == {"v000003": repo.branches["main"]}
    assert repo.messages[1:] == ["v000003: held_out 75.0 % (69.0–80.0)"]
    assert not repo.private


def test_a_run_stands_for_its_best_version(hub: Hub, push: Push, run: Path) -> None:
    AdapterStore(run / "adapters").point("best", 0)
    result = push(adapter="..")
    assert result.exit_code == 0, result.output
    assert "using its best version, v000000" in result.output
    assert set(hub.repos[REPO].tags) == {"v000000"}


def test_a_tag_never_moves(hub: Hub, push: Push, run: Path) -> None:
    """There is nothing to do for the same files, and other files need another tag."""
    push()
    before = len(hub.requests)
    again = push()
    assert again.exit_code == 0
    assert "nothing to do" in again.output
    assert not {"preupload", "batch", "put", "commit", "tag"} & set(hub.requests[before:])

    report("policy-v000003", 0.5, (0.4, 0.6), suite="gsm8k").write(run / "evals")
    refused = push()
    assert refused.exit_code == 2
    assert "a tag never moves" in refused.output
    assert push("--tag", "v000003-gsm8k").exit_code == 0
    assert hub.repos[REPO].messages[2:] == ["v000003: gsm8k 50.0 % (40.0–60.0), held_out 75.0 % (69.0–80.0)"]
    # The weights were already there: only new files were sent.
    assert set(hub.puts.values()) == {1}


def test_another_version_takes_the_branch(hub: Hub, push: Push, run: Path) -> None:
    """Files that are not a release's stay."""
    push()
    hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["LICENSE.txt"] = b"by hand"
    (run / "curves.png").unlink()
    (run / "evals" / "held_out-policy-v000003.json").unlink()
    assert push(adapter="v000000").exit_code == 0
    assert set(hub.files(REPO)) == {*released(run, "v000000"), ".gitattributes", "LICENSE.txt"}
    assert "curves.png" not in hub.files(REPO)
    assert "curves.png" in hub.files(REPO, "v000003")
    assert set(hub.repos[REPO].tags) == {"v000000", "v000003"}


def test_a_branch_is_made(hub: Hub, push: Push) -> None:
    assert push("--revision", "candidates").exit_code == 0
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert "README.md" in hub.files(REPO, "candidates")
    assert "README.md" in hub.files(REPO, "v000003")


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("put", "503"),
        ("put", "drop"),
        ("create", "502"),
        ("refs", "drop"),
        ("commit", "503"),
        ("commit", "drop"),
        ("commit", "lose"),
        ("tag", "500"),
        ("tag", "lose"),
    ],
)
def test_a_failure_is_tried_again_and_leaves_one_commit(hub: Hub, push: Push, run: Path, kind: str, fault: str) -> None:
    hub.faults[kind].append(fault)
    result = push()
    assert result.exit_code == 0, result.output
    assert not hub.faults[kind]
    assert len(hub.repos[REPO].messages) == 2
    assert hub.files(REPO, "v000003") == {**hub.files(REPO), **released(run)}
    assert set(hub.puts.values()) == {1}


def test_a_hub_that_stays_away_is_given_up_on(hub: Hub, push: Push) -> None:
    hub.faults["commit"].extend(["503"] * 100)
    result = push()
    assert result.exit_code == 1
    assert hub.requests.count("commit") == hub_module.ATTEMPTS
    assert "503" in result.output
    assert "Run the same command to continue" in result.output
    assert TOKEN not in result.output
    hub.faults["commit"].clear()
    assert push().exit_code == 0
    assert set(hub.puts.values()) == {1}


def test_what_the_hub_refuses_is_not_asked_again(hub: Hub, push: Push) -> None:
    hub.faults["commit"].append("403")
    result = push()
    assert result.exit_code == 1
    assert hub.requests.count("commit") == 1


def command(hub: Hub, run: Path, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rl_engine.push", "--adapter", str(run / "adapters/latest"), "--repo", REPO],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_push_that_was_killed_goes_on_where_it_was(hub: Hub, run: Path, tmp_path: Path) -> None:
    """The process is killed halfway through the second large file; the first is not sent again."""
    hub.faults["put"].extend(["", "hang"])
    killed = command(hub, run, tmp_path, HF_TOKEN=TOKEN)
    assert hub.hanging.wait(300)
    until(lambda: hub.puts)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert sum(hub.puts.values()) == 1
    assert hub.repos[REPO].messages == ["initial commit"]

    resumed = command(hub, run, tmp_path, HF_TOKEN=TOKEN)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    weights = (run / "adapters/latest/adapter_model.safetensors").read_bytes()
    assert hub.puts == {sha256(weights): 1, sha256(CURVES): 1}
    assert len(hub.repos[REPO].messages) == 2


def test_the_token_is_nowhere(hub: Hub, run: Path, tmp_path: Path) -> None:
    """The token comes from the login's file, every request is logged, and the last one is refused."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    hub.faults["tag"].append("403")
    done = command(hub, run, tmp_path, HF_DEBUG="1")
    output, _ = done.communicate()
    assert done.returncode == 1
    assert "curl -X POST" in output  # logging was on
    assert "authorization: <TOKEN>" in output
    assert TOKEN not in output
    assert len(hub.puts) == 2
    assert not hub.token_sent_to_storage
    assert not any(TOKEN.encode() in content for content in released(run).values())


@pytest.mark.parametrize("token", [None, "hf_somebodyelsestokenthatisnotours"])
def test_nothing_is_uploaded_without_a_token_or_with_a_wrong_one(
    hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """Without a token, the hub is not even contacted."""
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    result = push()
    assert result.exit_code == (2 if token is None else 1)
    assert ("hf auth login" if token is None else "401") in result.output
    assert hub.repos == {}
    assert hub.requests == ([] if token is None else ["create", "info"])
    assert token is None or token not in result.output


def test_private_means_private(hub: Hub, push: Push) -> None:
    assert push("--private").exit_code == 0
    assert hub.repos[REPO].private
    assert push("--tag", "again").exit_code == 0
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    before = len(hub.requests)
    refused = push("--private", "--tag", "third")
    assert refused.exit_code == 2
    assert "is public" in refused.output
    assert hub.requests[before:] == ["create", "info"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repo", "sums"], "write USER/NAME"),
        (["--repo", "ada/su ms"], "error: --repo: Repo id must use"),
        (["--base-model", "not a model"], "error: --base-model: Repo id must use"),
        (["--output", "."], "not a new one"),
        (["--merged-dtype", "float32"], "without --merged"),
    ],
)
def test_what_cannot_be_is_reported_before_anything_is_sent(
    hub: Hub, push: Push, arguments: list[str], words: str
) -> None:
    result = push(*arguments)
    assert result.exit_code == 2
    assert words in re.sub(r"\s+", " ", result.output)
    assert hub.requests == []


def test_an_adapter_that_is_not_what_was_published_is_refused(hub: Hub, push: Push, run: Path) -> None:
    weights = run / "adapters/v000003/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = push()
    assert result.exit_code == 2
    assert "sha256 differs" in result.output
    assert hub.requests == []
    assert not (run / "release").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "apache-2.0"),  # the embedded model's
        (["--base-model", "org/base"], "llama3.1"),
        (["--base-model", "org/base", "--license", "mit"], "mit"),
        (["--base-model", "org/unknown"], None),
    ],
)
def test_the_licence_is_the_base_models_unless_another_is_given(
    hub: Hub, push: Push, arguments: list[str], wanted: str | None
) -> None:
    hub.repos["org/base"] = Repo(private=False)
    hub.repos["org/base"].commit("main", {"README.md": b"---\nlicense: llama3.1\n---\n"}, "initial commit")
    assert push(*arguments).exit_code == 0
    assert ModelCard(hub.files(REPO)["README.md"].decode()).data.get("license") == wanted


def test_a_base_models_page_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    base = BaseModel(name="mine", hub_id=None, directory=tmp_path, revision=None)
    for page in ("---\nlicense: [mit\n---\n", "---\n- mit\n---\n"):
        (tmp_path / "README.md").write_text(page)
        with pytest.raises(ValueError, match=r"^the metadata of .*README.md cannot be read [^\n]*: give --license$"):
            licence_of(HfApi(), base, None)
        assert licence_of(HfApi(), base, "mit").id == "mit"


def test_a_dry_run_needs_no_hub(push: Push, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    result = push("--dry-run", "--output", str(tmp_path / "folder"), "--base-model", "org/base")
    assert result.exit_code == 0, result.output
    for path in files_of(tmp_path / "folder"):
        assert str(path) in result.output
    assert not (run / "release").exists()
