"""How a command reports arguments that it cannot accept, and on which ranks: one line, once, with code 2."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rewards.command import _terminated_within
from rl_engine.__main__ import main as rl_engine
from tests.command.test_help import CONFIGURED, MODULES, app_of

INCOMPLETE = [
    (module, param)
    for module in MODULES
    for param in get_command(app_of(module)).params
    if param.param_type_name == "option" and not getattr(param, "is_flag", False)
]
SAID = [
    (("plan", "--config", "quickstart.yaml", "--card", "3"), "--card is incomplete: --card TFLOPS TB/S"),
    (("plan", "--config", "quickstart.yaml", "--card", "3", "fast"), "--card is '3 fast': input should be a valid num"),
    (("plan", "--mfu=5", "--config", "quickstart.yaml"), "--mfu is '5': input should be less than or equal to 1"),
    (("plan",), "--config is missing. A YAML file, or the name of a shipped configuration. Repeat it to plan sever"),
    (("train", "--config", "quickstart.yaml", "--resume=yes"), "--resume takes no value"),
    (("report",), "RUN_DIR is missing. Run directories; several are compared. Example: python -m rl_engine.report"),
    (("report", "x", "--format", "gif"), "--format is 'gif': 'gif' is not one of 'svg', 'png'"),
    (("push", "--adapter", "x", "--repo", "a/b", "y"), "got unexpected extra argument"),
    # A word that is not a setting gets no hint that it might be one.
    (("sft", "--config", "sft_jsonl.yaml", "--dry-run"), "there is no option --dry-run: there are --config, --help"),
    (("sft", "--together", "3", "--config", "sft_jsonl.yaml"), "there is no option --together: there are --config,"),
    (("train", "--config", "quickstart.yaml", "--merge"), "there is no option --merge: there are --config, --dry-run"),
    (("train", "--force"), "there is no option --force: there are --config"),
    (("plan", "--resume", "--config", "quickstart.yaml"), "there is no option --resume: there are --card"),
    (("doctor", "--dry-run"), "there is no option --dry-run: there are --config, --help"),
    (("sweep", "--overwrite", "--config", "sweep_rates.yaml"), "there is no option --overwrite: there are --config"),
    (
        ("train", "--jobs", "3"),
        "there is no option --jobs (jobs=3: rl_engine.sweep has it, and this command does not; a setting",
    ),
    (
        ("train", "--lr=1e-3"),
        "there is no option --lr (lr=1e-3: did you mean optim.lr? a setting is written without dashes)",
    ),
    (
        ("train", "--batch-size", "8"),
        "there is no option --batch-size (batch_size=8: here it is train.problems_per_step; a setting",
    ),
    (
        ("train", "--lora-rank", "8"),
        "there is no option --lora-rank (a setting is written without dashes, lora.rank=8)",
    ),
    (("doctor", "--seed", "--x"), "there is no option --seed (a setting is written without dashes, seed=VALUE)"),
    (("sft", "--output-dir=x"), "there is no option --output-dir (a setting is written without dashes, output_dir=x)"),
    (("sweep", "--jobs", "3"), "there is no option --jobs (a setting is written without dashes, jobs=3)"),
    (("sweep", "--set.seed", "3"), "there is no option --set.seed (a setting is written without dashes, set.seed=3)"),
    # Nor does an option that is written like a setting.
    (
        ("train", "--config", "quickstart", "dry_run=true"),
        "dry_run=true: --dry-run is an option of this command: write --d",
    ),
    (("train", "resume", "--config", "quickstart"), "resume: --resume is an option of this command: write --resume"),
    (("sft", "--config", "sft_jsonl", "merge=1"), "merge=1: --merge is an option of this command: write --merge"),
    (
        ("plan", "--config", "gsm8k", "devices=1x80"),
        "devices=1x80: --devices is an option of this command: write --devices",
    ),
    (("sweep", "--config", "sweep_rates", "watch"), "watch: --watch is an option of this command: write --watch"),
    (("train", "config=gsm8k.yaml"), "give a configuration with --config: --config gsm8k.yaml"),
    (
        ("push", "--adapter", "x", "--repo", "a/b", "private=true"),
        "private=true: --private is an option of this command",
    ),
    # Only one of two configurations would take effect.
    (
        ("sft", "--config", "sft_jsonl", "--config", "gsm8k"),
        "--config is given twice, and this command takes one",
    ),
    (("sweep", "--config=sweep_rates", "--config", "sweep_ranks"), "--config is given twice, and this command takes"),
]


def line_of(module: str, *arguments: str, **environment: str) -> str:
    """The command's output, one line or none; it must exit with code 2."""
    result = CliRunner().invoke(app_of(module), arguments, env=environment)
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == bool(result.output)
    return result.output


@pytest.mark.parametrize("given", [("--output=~/taken",), ("--output", "~/taken")])
def test_a_home_that_no_shell_filled_in_is_filled_in(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `=` bash does not expand a `~`. The command would create a directory of that name, which nobody dares to
    remove."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").touch()
    told = CliRunner().invoke(app_of("rl_engine.merge"), ["--adapter", "x", *given]).output
    assert told.startswith(f"error: --output: {tmp_path}/taken already exists")


@pytest.mark.parametrize(("module", "param"), INCOMPLETE, ids=lambda each: getattr(each, "name", each))
def test_an_option_without_its_value_is_one_line(module: str, param: Any) -> None:
    name = max(param.opts, key=len)
    assert line_of(module, name).startswith(f"error: {name} is incomplete: {name} ")


@pytest.mark.parametrize(("command", "words"), SAID, ids=lambda each: " ".join(each) if isinstance(each, tuple) else "")
def test_the_line_names_option_value_and_way_out(command: tuple[str, ...], words: str) -> None:
    name, *arguments = command
    assert line_of(f"rl_engine.{name}", *arguments).startswith(f"error: {words}")


def test_a_working_directory_that_was_deleted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr("sys.argv", ["rl-engine", "report", "run"])
    monkeypatch.setattr("runpy.run_module", lambda *_, **__: None)
    rl_engine()  # leaves it to the command
    assert line_of("rl_engine.report", "run").startswith("error: the current directory was deleted: change to one")


@pytest.mark.parametrize("module", CONFIGURED)
@pytest.mark.parametrize(
    "arguments", [("--config", "gone.yaml"), ("--config", "quickstart.yaml", "seeed=1"), ("--no",)]
)
def test_one_process_of_a_launcher_says_what_is_wrong(
    module: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several machines, the first process of each reports it: a file may be missing on only one of them."""
    monkeypatch.setattr("rewards.command._terminated_within", lambda _: True)
    said = line_of(module, *arguments)
    assert said.startswith("error: ")
    for rank, local, heard in (("0", "0", said), ("1", "1", ""), ("8", "0", said)):
        assert line_of(module, *arguments, RANK=rank, LOCAL_RANK=local, WORLD_SIZE="16") == heard
    monkeypatch.setattr("rewards.command._terminated_within", lambda _: False)
    assert line_of(module, *arguments, RANK="1", LOCAL_RANK="1", WORLD_SIZE="16") == said


@pytest.mark.parametrize("module", CONFIGURED)
def test_what_deepspeed_s_launcher_adds_is_no_option(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`deepspeed --module` puts the option before the user's own arguments; the command reads the environment variable
    instead."""
    arguments = ("--local_rank=0", "--config", "gone.yaml")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # left by a test that has joined a process group
        monkeypatch.delenv(name, raising=False)
    assert "gone.yaml" in line_of(module, *arguments, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    assert line_of(module, *arguments).startswith("error: there is no option --local_rank")


@pytest.mark.parametrize(("asked", "code"), [(True, 2), (False, 3)])
def test_a_silent_process_ends_with_its_own_code(asked: bool, code: int) -> None:
    """The silent process waits, because a launcher ends all processes once one has exited, and so might end the first
    one before it has reported the error."""
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(2 if _terminated_within(60.0 if asked else 0.01) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
