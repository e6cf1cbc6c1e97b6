"""A suite as it is prompted for one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evals.options import EvalOptions
from evals.prepare import prompt_of
from evals.suites import SUITES
from rollout.models import EMBEDDED_DIR


@pytest.mark.parametrize(
    ("model", "changes", "template"),
    [
        ("org/Thing-Instruct", {}, "chat"),
        ("org/Thing-8B-Base", {}, "problem_solution"),
        ("org/database-7B", {}, "chat"),
        ("org/Thing-Base", {"template": "chat"}, "chat"),
        ("org/Thing", {"frame": "Q: {problem}\nA:"}, "frame"),
    ],
)
def test_base_models_get_no_chat_template(model: str, changes: dict[str, str], template: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    options = replace(EvalOptions(model=model, suites=("gsm8k",), output=tmp_path / "out.json"), **changes)  # type: ignore[arg-type]
    assert prompt_of(options, SUITES["gsm8k"], tokenizer).template == template
    tokenizer.chat_template = None
    plain = {"chat": "problem_solution"}.get(template, template)
    if "template" not in changes:
        assert prompt_of(options, SUITES["gsm8k"], tokenizer).template == plain
