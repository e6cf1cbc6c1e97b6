"""Problem → prompt: the model's chat template, or a plain frame for models that have none.

A base model must not be given another model's chat template: it answers in no form the grader can find,
and every reward is zero. It gets a frame it has seen the like of in text, and a stop string, since it does
not end its turn by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollout.frames import FRAMES
from rollout.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rollout.config import PromptConfig


@dataclass(frozen=True, slots=True)
class Renderer:
    """Turns problems into prompts for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: PromptConfig

    def __post_init__(self) -> None:
        if self.config.template == "chat" and not self.tokenizer.chat_template:
            raise ValueError(
                "prompt.template is 'chat' but the model has no chat template (a base model?); "
                f"choose one of {', '.join(sorted(FRAMES))}, or 'frame' with prompt.frame"
            )
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token: completions could never end")

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that belong to the template."""
        return FRAMES[self.config.template].stop if self.config.template in FRAMES else ()

    def render(self, problem: Problem) -> Prompt:
        question = problem.text
        if self.config.instruction:
            question = f"{question}\n{self.config.instruction}"
        if self.config.template == "chat":
            # What a person asks for goes before what the data brings along.
            scene = self.config.system or problem.system
            system = [{"role": "system", "content": scene}] if scene else []
            text = self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            # The template writes its own special tokens.
            ids = self.tokenizer.encode(str(text), add_special_tokens=False)
        else:
            frame = self.config.frame or FRAMES[self.config.template].text
            # Not str.format: problems are full of braces.
            text = frame.replace("{problem}", question)
            ids = self.tokenizer.encode(text, add_special_tokens=True)
        return Prompt(problem=problem, text=str(text), token_ids=tuple(ids))

    def render_all(self, problems: Iterable[Problem]) -> list[Prompt]:
        return [self.render(problem) for problem in problems]
