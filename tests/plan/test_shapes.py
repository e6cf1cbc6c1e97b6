"""The shapes of the shipped recipes' models have the published numbers of parameters, and can be planned without a
hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rl_engine.config import load_config
from rl_engine.config.file import CONFIGS
from rl_engine.plan.__main__ import app
from rl_engine.policy.base_model import load_meta_model
from rollout.config import ModelConfig
from rollout.models import SHAPES, hub_items_of_config, locate_config

ROOT = Path(__file__).parents[2]
NAMES = sorted(str(path.parent.relative_to(SHAPES)) for path in SHAPES.glob("*/*/config.json"))
# From the model cards and the headers of their safetensors files.
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}
RECIPES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
OF_TRAINING = [name for name, values in RECIPES.items() if "sampling" in values]


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    model = load_meta_model(ModelConfig(name=name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert name in json.loads((SHAPES / name / "config.json").read_text())["_source"]


def test_every_model_of_a_shipped_recipe_has_its_shape() -> None:
    named = {values["model"]["name"] for values in RECIPES.values() if "model" in values}
    assert {name for name in named if "/" in name and not name.startswith("runs/")} == set(NAMES) == set(PARAMETERS)


def test_a_directory_and_a_revision_come_before_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[0]
    assert locate_config(ModelConfig(name=name)) == str(SHAPES / name)
    assert locate_config(ModelConfig(name=name, revision="v2")) == name
    (item,) = hub_items_of_config(ModelConfig(name=name, revision="v2"))
    # As the config.yaml of a run notes it, which is planned on a machine without that commit.
    assert item.named == f"{name} at revision v2 is on the hub, and"
    assert item.instead.endswith("or model.revision=null to use the shape that ships with the project")
    organization = name.partition("/")[0]
    assert locate_config(ModelConfig(name=organization)) == organization
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text("{}")
    assert locate_config(ModelConfig(name=name)) == str(tmp_path / name)


@pytest.mark.parametrize("recipe", OF_TRAINING)
def test_a_shipped_recipe_is_planned_without_the_hub(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is requested: in a process without network it would be refused and recorded."""
    monkeypatch.setattr("socket.getaddrinfo", None)
    arguments = ["--config", recipe, "--devices", "8x80"]
    done = CliRunner(env={"HF_HUB_OFFLINE": "1"}).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert load_config(recipe).model.name in done.stdout
    assert "needed in learn" in done.stdout


def test_a_dry_run_without_the_hub_shows_all_but_the_data(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "no_network"))),
        "NETWORK_ATTEMPTS": str(tmp_path / "attempts"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "rl_engine.train", "--config", "smollm2_gsm8k.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "rank 1" in done.stdout
    assert "capacity" in done.stdout
    loading, error = done.stderr.strip().splitlines()
    assert loading.startswith("loading ")
    assert error.startswith("error: model.name: no directory HuggingFaceTB/SmolLM2-135M-Instruct here, and the hub ")
    # One request of ours, and one that the hub's client makes on its own before its first.
    assert (tmp_path / "attempts").read_text().splitlines() == ["huggingface.co"] * 2
