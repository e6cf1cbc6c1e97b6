"""Problem → prompt: the model's chat template, or a plain frame for models that have none.

A base model must not get another model's chat template: its answers would be in no form that the grader finds, and
every reward would be zero. It gets a plain frame like those in its training text, and a stop string, since it does not
end its turn by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from rollout.frames import FRAMES
from rollout.prompts.chat import ChatTemplate
from rollout.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rollout.config import PromptConfig


def encode_beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that something is to follow, with the special tokens that begin a text and not those that end
    one: a tokenizer saved with `add_eos_token`, as for training, ends every text."""
    ids = list(tokenizer.encode(text, add_special_tokens=True))
    ended = ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(str(tokenizer.eos_token))
    return ids[:-1] if ended else ids


def refuse_endless(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ValueError` for a tokenizer without an end token."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so that no text could ever end: "
            "set eos_token in its tokenizer_config.json"
        )


@dataclass(frozen=True, slots=True)
class Renderer:
    """Turns problems into prompts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig
    _chat: ChatTemplate | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if self.config.template == "chat" and not self.tokenizer.chat_template:
            raise ValueError(
                "prompt.template is 'chat' but the model has no chat template (a base model?); "
                f"choose one of {', '.join(sorted(FRAMES))}, or 'frame' with prompt.frame"
            )
        refuse_endless(self.tokenizer)
        if self.config.template == "chat":
            object.__setattr__(self, "_chat", ChatTemplate(self.tokenizer, self.config))

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that belong to the template."""
        return FRAMES[self.config.template].stop if self.config.template in FRAMES else ()

    def endless_turn(self, ends: Collection[int], stop: Collection[str]) -> str | None:
        """A warning if the chat template ends a turn with a token that does not end a completion, being neither in
        `ends` nor in `stop`: a model that knows the template would keep writing after it."""
        number = self._chat.end_of_turn() if self._chat is not None else None
        if number is None or number in ends or (token := str(self.tokenizer.decode([number]))) in stop:
            return None
        known = ", ".join(repr(self.tokenizer.decode([end])) for end in sorted(ends))
        return (
            f"the chat template ends a turn with {token!r}, and this model (a base model?) stops only at {known}: "
            "completions may run past the answer"
        )

    def render(self, problem: Problem) -> Prompt:
        question = problem.text
        if self.config.instruction:
            question = f"{question}\n{self.config.instruction}"
        if self._chat is not None:
            # A configured system turn takes precedence over the data's.
            system = self._chat.system(problem.system)
            try:
                text = self._chat.render([*system, {"role": "user", "content": question}], ask=True)
            except TemplateError as error:
                raise ValueError(
                    f"problem {problem.id}: the model's chat template refuses its system turn: {error}; "
                    "give prompt.system, or data without system turns"
                ) from error
            # A template may strip whitespace, but must not lose any text.
            if question.strip() not in text or any(turn["content"].strip() not in text for turn in system):
                raise ValueError(
                    f"problem {problem.id}: the model's chat template drops part of its text: use another "
                    "prompt.template"
                )
            # The template writes its own special tokens.
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            frame = self.config.frame or FRAMES[self.config.template].text
            # Not str.format: problems are full of braces.
            text = frame.replace("{problem}", question)
            ids = encode_beginning(self.tokenizer, text)
        return Prompt(problem=problem, text=text, token_ids=tuple(ids))

    def render_all(self, problems: Iterable[Problem]) -> list[Prompt]:
        return [self.render(problem) for problem in problems]
