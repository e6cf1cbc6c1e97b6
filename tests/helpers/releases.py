"""Releases of a tiny run and the contents of their cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from rl_engine.config import Config, load_config
from rl_engine.push.__main__ import app
from rl_engine.push.model_card import Licence, Release
from rl_engine.push.release import make_release
from rl_engine.run.trained_adapter import read_trained
from rollout.adapters import read_manifest, write_manifest

REPO = "ada/sums"


def release(
    run: Path, folder: Path, base_model: str | None = None, merged: str | None = None, *, completions: bool = False
) -> Path:
    adapter = read_trained(run / "adapters" / "latest", base_model)
    make_release(
        Release(
            adapter=adapter,
            repo=REPO,
            tag=adapter.version,
            licence=Licence(id=None),
            merged=merged,
            completions=completions,
        ),
        folder,
    )
    return folder


def configure(run: Path, *overrides: str) -> Config:
    """Replace the run's configuration."""
    config = load_config(str(run / "config.yaml"), overrides)
    (run / "config.yaml").write_text(config.to_yaml())
    return config


def table(folder: Path) -> str:
    return (folder / "README.md").read_text()


def rename_base(run: Path, name: str, loaded: str) -> None:
    """Publish the last version again as if it had another base model."""
    directory = run / "adapters/v000003"
    facts = {key: value for key, value in read_manifest(directory).items() if key not in ("files", "format")}
    peft_config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**peft_config, "base_model_name_or_path": loaded}))
    write_manifest(directory, {**facts, "base_model": name})


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def published(run: Path, *arguments: str) -> list[str]:
    """Push a release and return the code blocks on its card."""
    command = ["--adapter", str(run / "adapters/latest"), "--repo", REPO, *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return snippets(table(run / "release/v000003"))


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    return names


def logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1)
