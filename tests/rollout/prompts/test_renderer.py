"""Prompt templates: what the model sees, and what ends a completion."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer

from rollout.config import WRITTEN_BY_US, PromptConfig
from rollout.frames import FRAMES
from rollout.models import EMBEDDED_DIR, end_tokens, locate_model, read_tokenizer
from rollout.prompts.renderer import Renderer
from rollout.types import Problem
from rollout.vllm.decoder import Decoder

PROBLEM = Problem(id="p", text="1+{2}=?", answer="3")


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(locate_model("embedded"))


def test_the_chat_template_is_the_models_own(tokenizer: Any) -> None:
    prompt = Renderer(tokenizer, PromptConfig(instruction=None)).render(PROBLEM)
    assert prompt.text == "1+{2}=?\n"
    assert tokenizer.decode(list(prompt.token_ids)).startswith("1+")


def test_of_several_chat_templates_the_default_one_is_taken(tokenizer: Any) -> None:
    """Older tokenizers have several templates, each under a name."""
    config, own = PromptConfig(instruction=None), tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": "{{ tools }}", "default": own}
    assert Renderer(tokenizer, config).render(PROBLEM).text == "1+{2}=?\n"
    tokenizer.chat_template = {"tool_use": "{{ tools }}", "rag": own}
    with pytest.raises(ValueError, match=r"2 chat templates \(tool_use, rag\), none of them called default: write"):
        Renderer(tokenizer, config)


def test_a_turn_that_ends_no_completion_is_reported(tokenizer: Any, tmp_path: Path) -> None:
    """Qwen's base models come with the chat template of the chat models, but with a different end token."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<end>\n{% endfor %}"
    renderer, end = Renderer(tokenizer, PromptConfig()), tokenizer.eos_token_id
    found = renderer.endless_turn({tokenizer.pad_token_id}, ())
    assert found is not None
    assert found.startswith("the chat template ends a turn with '<end>', and this model (a base model?) ")
    assert found.endswith(" stops only at '<pad>': completions may run past the answer")
    assert renderer.endless_turn({end}, ()) is None
    assert renderer.endless_turn(set(), ("<end>",)) is None
    assert Renderer(tokenizer, PromptConfig(template="plain")).endless_turn(set(), ()) is None
    config = AutoConfig.for_model("qwen2", eos_token_id=7)
    assert end_tokens(str(tmp_path), None, config, tokenizer) == {7, end}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert end_tokens(str(tmp_path), None, config, tokenizer) == {5, 6, end}
    for stated, told in (
        ({"eos_token_id": 7.0}, r"json is 7\.0, no token"),
        ({"pad_token_id": "x"}, "json cannot be read"),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps(stated), encoding="utf-8")
        with pytest.raises(ValueError, match=told):
            end_tokens(str(tmp_path), None, config, tokenizer)


def test_a_mistral_has_the_tokenizer_of_the_others(tokenizer: Any, tmp_path: Path) -> None:
    """Its chat template and the sampler's decoder are the same too, although a tokenizer file in Mistral's own format
    is there."""
    for path in EMBEDDED_DIR.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    (tmp_path / "tekken.json").symlink_to(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")
    found = read_tokenizer(str(tmp_path))
    config = PromptConfig(instruction=None)
    assert Renderer(found, config).render(PROBLEM) == Renderer(tokenizer, config).render(PROBLEM)
    assert Decoder.of(found).silent == Decoder.of(tokenizer).silent


def test_system_and_instruction_go_where_they_belong(tokenizer: Any) -> None:
    prompt = Renderer(tokenizer, PromptConfig(system="S", instruction="I")).render(PROBLEM)
    assert prompt.text == "S\n1+{2}=?\nI\n"


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_holds_the_problem_to_the_letter(name: str, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, PromptConfig(template=name, instruction=None))
    assert renderer.render(PROBLEM).text == FRAMES[name].text.replace("{problem}", "1+{2}=?")
    assert renderer.stop == FRAMES[name].stop


def test_no_prompt_ends_where_a_text_does(tokenizer: Any) -> None:
    """A tokenizer that was saved for training adds an end token to every text, and a model may say anything after
    that."""
    config = PromptConfig(template="plain", instruction=None)
    expected = Renderer(tokenizer, config).render(PROBLEM)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    assert tokenizer.encode(expected.text)[-1] == end[1]
    assert Renderer(tokenizer, config).render(PROBLEM) == expected


def test_an_own_frame(tokenizer: Any) -> None:
    config = PromptConfig(template="frame", frame="Q {problem} A", instruction=None)
    assert Renderer(tokenizer, config).render(PROBLEM).text == "Q 1+{2}=? A"


def test_a_base_model_must_not_get_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*problem_solution"):
        Renderer(tokenizer, PromptConfig())


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match=r"^the tokenizer of .*embedded has no .*: set eos_token in its tokenizer_config"
    ):
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
    with pytest.raises(FileNotFoundError, match=r"model.name: '~nobody-so-called/model' is not a model directory"):
        locate_model("~nobody-so-called/model")
    assert locate_model("org/name") == "org/name"


# Small versions of the chat templates of model families.
CHATS = {
    "thinks": "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if not enable_thinking %}<think></think>{% endif %}",
    "dated": "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}",
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ messages[0].content }}",
    "deaf": "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
    "parts": "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    "cut": "{% for m in messages %}{{ m.content.split('{')[0] }}{% endfor %}",
}


def test_arguments_reach_the_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATS["thinks"]
    for value, end in ((True, "?"), (False, "<think></think>")):
        config = PromptConfig(instruction=None, template_arguments={"enable_thinking": value})
        assert Renderer(tokenizer, config).render(PROBLEM).text.endswith(end)


def test_the_date_in_a_prompt_is_the_same_on_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATS["dated"]
    assert Renderer(tokenizer, PromptConfig(instruction=None)).render(PROBLEM).text == "01 Jan 2026 1+{2}=?"


@pytest.mark.parametrize(
    ("chat", "settings", "words"),
    [
        (
            "thinks",
            {"template_arguments": {"enabel_thinking": True}},
            "prompt.template_arguments.enabel_thinking: .* no",
        ),
        ("no system", {"system": "Be brief."}, r"prompt.system: .* refuses .*System role not supported.* out"),
        ("deaf", {"system": "Be brief."}, r"prompt.system: .* leaves the system message out"),
        ("parts", {}, "drops the problem's text .* prompt.frame"),
    ],
)
def test_a_template_that_cannot_hold_what_is_asked_is_refused(
    chat: str, settings: dict[str, Any], words: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = CHATS[chat]
    with pytest.raises(ValueError, match=words) as caught:
        Renderer(tokenizer, PromptConfig(**settings))
    assert "\n" not in str(caught.value)


def test_a_prompt_that_lost_part_of_its_problem_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATS["cut"]
    with pytest.raises(ValueError, match=r"problem p: .* drops part of its text"):
        Renderer(tokenizer, PromptConfig(instruction=None)).render(PROBLEM)


@pytest.mark.parametrize("name", ["messages", "strftime_now", "tokenize", "no name"])
def test_what_a_prompt_settles_itself_is_no_argument(name: str) -> None:
    with pytest.raises(ValueError, match=f"prompt.template_arguments.{name}"):
        PromptConfig(template_arguments={name: True})
    with pytest.raises(ValueError, match=r"prompt\.template_arguments needs prompt.template: chat"):
        PromptConfig(template="plain", template_arguments={"enable_thinking": True})


def test_the_names_that_transformers_takes_itself_are_known(tokenizer: Any) -> None:
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    assert {name for name in taken if name != "kwargs"} <= WRITTEN_BY_US
