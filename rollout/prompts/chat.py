"""Messages → text: the model's own chat template, with the configured arguments and a fixed date."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rollout.config import PromptConfig

Message = dict[str, str]
# The date for templates that write one, so that prompts are the same on every day: in a run, its resumption and its
# evaluation. A template that reads `date_string` or the like can be given another through prompt.template_arguments.
DATE = datetime.datetime(2026, 1, 1)
PROBE = "How much is six times seven?"
ANSWER = "Forty-two."


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of one tokenizer.

    Raises `ValueError` on construction if the template cannot express what the configuration wants in a prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig

    def __post_init__(self) -> None:
        own = self.tokenizer.chat_template
        if isinstance(own, dict) and "default" not in own:
            raise ValueError(
                f"prompt.template is chat, and the model has {len(own)} chat templates ({', '.join(own)}), none of "
                "them called default: write the one that is meant into the model's directory as chat_template.jinja"
            )
        source = str(self.tokenizer.get_chat_template())
        for name in self.config.template_arguments:
            if not re.search(rf"\b{re.escape(name)}\b", source):
                raise ValueError(
                    f"prompt.template_arguments.{name}: the chat template of this model reads nothing of that name; "
                    "leave it out"
                )
        self._try()

    def system(self, own: str = "") -> list[Message]:
        """The system turn: the configured text, else the problem's `own`."""
        scene = self.config.system or own
        return [{"role": "system", "content": scene}] if scene else []

    def render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The text of a conversation; with `ask`, up to where the assistant's turn begins.

        Raises jinja2's `TemplateError` if the template refuses it.
        """
        arguments: dict[str, Any] = {**self.config.template_arguments, "strftime_now": DATE.strftime}
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=ask, **arguments
        )
        return str(text)

    def end_of_turn(self) -> int | None:
        """The special token that the template writes after an answer; None if it writes none."""
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": ANSWER}]
        try:
            behind = self.render(turns, ask=False).rpartition(ANSWER)[2]
        except TemplateError:
            return None
        first = self.tokenizer.encode(behind.lstrip(), add_special_tokens=False)[:1]
        special = [number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special]
        return next((number for number in first if number in special), None)

    def _try(self) -> None:
        """Render a probe: some templates reject certain roles, and some drop what they do not expect."""
        question = {"role": "user", "content": PROBE}
        try:
            alone = self.render([question], ask=True)
        except TemplateError as error:
            raise ValueError(
                f"prompt.template is chat, and the chat template of this model refuses a question: {error}; take "
                "another prompt.template"
            ) from error
        if PROBE not in alone:
            raise ValueError(
                "prompt.template is chat, and the chat template of this model drops the problem's text (it may expect "
                "a list of parts, as for images): use another prompt.template, or frame with prompt.frame"
            )
        if not self.config.system:
            return
        try:
            text = self.render([*self.system(), question], ask=True)
        except TemplateError as error:
            raise ValueError(
                f"prompt.system: the chat template of this model refuses a system message: {error}; leave "
                "prompt.system out, or say it in prompt.instruction"
            ) from error
        if self.config.system.strip() not in text or PROBE not in text:
            raise ValueError(
                "prompt.system: the chat template of this model leaves the system message out; leave prompt.system "
                "out too, or say it in prompt.instruction"
            )


def describe_arguments(arguments: dict[str, Any]) -> str:
    """The arguments as text for the user: `enable_thinking=false`."""
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
