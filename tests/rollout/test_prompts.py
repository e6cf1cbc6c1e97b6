"""Prompt templates: what the model sees, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from rollout.config import PromptConfig
from rollout.frames import FRAMES
from rollout.models import locate_model
from rollout.prompts.renderer import Renderer
from rollout.types import Problem

PROBLEM = Problem(id="p", text="1+{2}=?", answer="3")


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(locate_model("embedded"))


def test_the_chat_template_is_the_models_own(tokenizer: Any) -> None:
    prompt = Renderer(tokenizer, PromptConfig(instruction=None)).render(PROBLEM)
    assert prompt.text == "1+{2}=?\n"
    assert tokenizer.decode(list(prompt.token_ids)).startswith("1+")


def test_system_and_instruction_go_where_they_belong(tokenizer: Any) -> None:
    prompt = Renderer(tokenizer, PromptConfig(system="S", instruction="I")).render(PROBLEM)
    assert prompt.text == "S\n1+{2}=?\nI\n"


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_holds_the_problem_to_the_letter(name: str, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, PromptConfig(template=name, instruction=None))
    assert renderer.render(PROBLEM).text == FRAMES[name].text.replace("{problem}", "1+{2}=?")
    assert renderer.stop == FRAMES[name].stop


def test_an_own_frame(tokenizer: Any) -> None:
    config = PromptConfig(template="frame", frame="Q {problem} A", instruction=None)
    assert Renderer(tokenizer, config).render(PROBLEM).text == "Q 1+{2}=? A"


def test_a_base_model_must_not_get_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*problem_solution"):
        Renderer(tokenizer, PromptConfig())


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        Renderer(tokenizer, PromptConfig())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "frame"}, "go together"),
        ({"template": "frame", "frame": "no place"}, "{problem}"),
        ({"template": "plain", "system": "S"}, "prompt.system"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptConfig(**settings)


def test_a_path_that_is_no_model_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        locate_model("/nowhere/model")
    assert locate_model("org/name") == "org/name"
