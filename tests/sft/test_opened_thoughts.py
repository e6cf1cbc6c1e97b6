"""Supervised answers behind a prompt in which the chat template has opened or ended a thought."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rl_engine.config.sft import SftPromptConfig
from rl_engine.sft.conversations import Conversation
from rl_engine.sft.examples import ExampleRenderer, UnusableConversationError
from rollout.prompts.renderer import Renderer
from rollout.types import Problem
from tests.helpers.turns import learned, said

# DeepSeek-R1's: it opens the thought in the prompt, and leaves it out of every answered turn.
OPENING = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}"
    "{% else %}A:{{ m.content.split('</think>')[-1] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:<think>\n{% endif %}"
)


# Qwen3's with enable_thinking=false.
CLOSED = OPENING.replace("A:<think>\n", "A:<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>\n1+1=\n</think>\n\n2"},
        {"content": "1+1=\n</think>\n\n2"},  # as it was sampled behind such a prompt
        {"content": "2", "reasoning_content": "1+1=\n"},
    ],
)
def test_an_answer_continues_the_thought_that_the_prompt_opens(answer: dict[str, str], tokenizer: Any) -> None:
    """Every such row was dropped, so nothing could be learned with the distilled DeepSeek-R1 models."""
    tokenizer.chat_template = OPENING
    config = SftPromptConfig()
    earlier = said("3", "4")
    messages = (*earlier, *said("1+1"), {"role": "assistant", **answer})
    example = ExampleRenderer(tokenizer, config).example(Conversation(id="r1", messages=messages[2:]))
    asked = Renderer(tokenizer, config).render(Problem(id="r1", text="1+1", answer="2"))
    assert asked.text.endswith("A:<think>\n")
    (tokens,) = learned(example)
    assert tuple(example.input_ids[: -len(tokens)]) == asked.token_ids
    assert tokens == tokenizer.encode("1+1=\n</think>\n\n2<end>", add_special_tokens=False)
    # An earlier turn is rendered without its thought, and only the last is learned.
    (again,) = learned(ExampleRenderer(tokenizer, config).example(Conversation(id="r1", messages=messages)))
    assert again == tokens


@pytest.mark.parametrize(
    ("template", "answer", "reason"),
    [
        (OPENING, "2", "no thought, and the chat template opens one in the prompt (<think>)"),
        (CLOSED, "<think>\n1+\n</think>\n\n2", "a thought, which the chat template has ended in the prompt"),
        (OPENING.replace("U:", "{{ 'U' if loop.last else 'u' }}:"), "<think>1</think>2", "renders a question diff"),
    ],
)
def test_an_answer_that_does_not_fit_its_prompt_says_why(
    template: str, answer: str, reason: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    renderer = ExampleRenderer(tokenizer, SftPromptConfig())
    with pytest.raises(UnusableConversationError, match=re.escape(reason)):
        renderer.example(Conversation(id="r1", messages=said("1+1", answer)))
