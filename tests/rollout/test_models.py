"""A config.json of anybody's: what describes no model is told in one line, and code beside one is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils
from typer.testing import CliRunner

from rl_engine.plan.__main__ import app
from rollout.models import EMBEDDED_DIR

EMBEDDED: dict[str, Any] = json.loads((EMBEDDED_DIR / "config.json").read_text())
# What a person may have typed, and what the line says of it.
DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": "4"}, "num_hidden_layers' expected int, got str"),
    ({"vocab_size": None}, "vocab_size' expected int, got NoneType"),
    ({"vocab_size": -1}, "negative dimension"),
    ({"max_position_embeddings": "32k"}, "max_position_embeddings' expected int"),
    ({"model_type": "qwen2", "num_attention_heads": 0}, "ZeroDivisionError: "),
    ({"hidden_act": "swoosh"}, "swoosh"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}, "magic"),
    ({"torch_dtype": "float7", "dtype": "float7"}, "float7"),
    ({"quantization_config": [1]}, "list"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"model_type": "qwen99"}, "qwen99"),
    ({"model_type": "t5"}, "Unrecognized configuration class"),
    ({"model_type": "gemma3n"}, "timm"),
]


def planned(directory: Path, values: dict[str, Any]) -> Any:
    (directory / "config.json").write_text(json.dumps(values))
    return CliRunner().invoke(app, ["--config", "quickstart.yaml", f"model.name={directory}", "--devices", "1x80"])


@pytest.mark.parametrize(("changed", "words"), DAMAGED, ids=lambda each: str(each)[:40])
def test_what_describes_no_model_is_told_in_one_line(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = planned(tmp_path, {**EMBEDDED, **changed})
    assert done.exit_code == 2, done.output
    _, error = done.stderr.strip().split("\nerror: ")
    assert error.startswith(f"model.name: {tmp_path}: ")
    assert words in error
    assert error.count("\n") == 0
    assert len(error) < 600


def test_a_plan_neither_runs_nor_asks_about_a_model_s_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Mine: pass\n")
    done = planned(tmp_path, {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}})
    assert (done.exit_code, "custom code" in done.stderr) == (2, True)
    assert not (tmp_path / "made").exists()
