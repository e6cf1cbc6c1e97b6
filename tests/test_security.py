"""What docs/security.md promises, as far as it can be checked without a run."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from rewards.workers import processes
from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.run.checkpoint import Checkpoints, RunState
from rollout.adapters import write_manifest
from rollout.models import refuse_code_of_models
from tests.test_layout import FILES, ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
# Ways to run code that somebody else may have written: unpickling, YAML object tags, a shell, a model's own code.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.popen",
    "os.system",
    "torch.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
FORBIDDEN_ARGUMENTS = {"trust_remote_code", "shell", "allow_pickle"}


@pytest.mark.parametrize("path", [*FILES, *BENCHMARKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_that_came_as_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS
            assert not {keyword.arg for keyword in node.keywords} & FORBIDDEN_ARGUMENTS


def test_a_pickle_in_the_place_of_a_checkpoint_is_not_opened(tmp_path: Path) -> None:
    """The manifest vouches for the file, as an attacker who passes on a checkpoint would arrange."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "made",)

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(RunState(step=1, position=1, version=1, config_hash="h"), {"w": torch.ones(1)})
    place = tmp_path / "step000001"
    (place / "learner.safetensors").write_bytes(pickle.dumps(Evil()))
    (place / "manifest.json").unlink()
    write_manifest(place, {"step": 1})
    with pytest.raises(Exception, match="deserializ"):
        checkpoints.newest()
    assert not (tmp_path / "made").exists()


def test_a_run_by_itself_listens_on_loopback_alone(ranks: Ranks) -> None:
    assert ranks.count == 1
    listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    # A dual-stack socket shows 127.0.0.1 as ::ffff:127.0.0.1.
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("function", [None, "mine:reward"])
def test_grading_processes_get_no_secrets(function: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they run the user's own reward function."""
    secrets = {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "hub_password"}
    for name in secrets:
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setattr(processes, "CLOSE_LIMIT_S", 0.01)
    fork_server = processes.ForkServerProcess({"function": function})
    told: dict[str, str] = {}
    while not told:  # a process shows no environment until exec has replaced the forked program
        told = psutil.Process(fork_server.pid).environ()
    fork_server.close()
    assert secrets & told.keys() == (secrets if function else set())
    assert told["PATH"] == os.environ["PATH"]


def test_code_beside_a_model_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    refuse_code_of_models()
    with pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_configuration_may_name_variables_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("OPENAI_API_KEY", "hidden")
    assert load_config("quickstart.yaml", ["output_dir=${oc.env:SCRATCH}/run"]).output_dir == "/scratch/run"
    assert load_config("quickstart.yaml", ["output_dir=${oc.env:NOWHERE,here}"]).output_dir == "here"
    with pytest.raises(ConfigError, match="OPENAI_API_KEY looks like a secret") as error:
        load_config("quickstart.yaml", ["rewards.function_arguments={key: '${oc.env:OPENAI_API_KEY}'}"])
    assert "hidden" not in str(error.value)
