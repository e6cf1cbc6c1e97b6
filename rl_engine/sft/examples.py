"""Conversations → token ids and labels: what a supervised step sees, and which tokens it learns.

The prompt is tokenized by itself, as the sampler would receive it, and the answer by itself, as the sampler would
continue it, so that reinforcement learning can start from exactly what is learned here: without the space that some
tokenizers write before the first word of a text. The last turn ends with the end-of-sequence token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray

from datafiles.cells import named
from datafiles.dropped import Dropped
from datafiles.rows import remedy
from datafiles.text import read_text
from rewards.extraction.marks import open_thought
from rl_engine.config.sft import SftConfig
from rl_engine.sft.conversations import THOUGHTS, UNLEARNED, Conversation, Message, streams
from rollout.config import PromptConfig
from rollout.frames import CHAT_TEMPLATES
from rollout.prompts.chat import ChatTemplate
from rollout.prompts.renderer import Renderer
from rollout.types import Problem

IGNORED = -100
# Lists of Python integers would take ten times the memory.
Tokens = NDArray[np.int32]


class UnusableConversationError(ValueError):
    """A conversation that cannot be learned from; the message is the reason under which it is counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """[T] token ids, and [T] labels: the same id where a token is learned, `IGNORED` elsewhere."""

    input_ids: Tokens
    labels: Tokens

    @property
    def learned_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    train: list[Example]
    test: list[Example]
    dropped: Dropped

    def describe(self) -> str:
        counts = f"{len(self.train):,} examples, {len(self.test):,} to test on"
        unread = [f"columns not read: {named(self.dropped.unread)}"] if self.dropped.unread else []
        return "; ".join([counts, *self.dropped.lines(), *unread])


@dataclass(frozen=True, slots=True)
class ExampleRenderer:
    """Turns conversations into examples for one tokenizer."""

    tokenizer: Any
    prompt: PromptConfig
    _chat: ChatTemplate | None = field(init=False, default=None, repr=False)
    _spaces_texts: bool = field(init=False, default=False, repr=False)
    """Whether the tokenizer writes a space before the first word of a text, as Llama 2's and Mistral's do."""

    def __post_init__(self) -> None:
        """Raises `ValueError` when the chat template cannot hold what the configuration asks for."""
        object.__setattr__(self, "_spaces_texts", self._ids("\na")[len(self._ids("\n")) :] != self._ids("a"))
        if self.prompt.template == "chat":
            object.__setattr__(self, "_chat", ChatTemplate(self.tokenizer, self.prompt))

    def example(self, conversation: Conversation) -> Example:
        """Render and tokenize a conversation. Raises `UnusableConversationError` with the reason."""
        ids, labels = [], []
        parts = self._parts(conversation.messages)
        if not any(learned for _, learned in parts):
            raise UnusableConversationError("every assistant turn has weight 0, so there is nothing to learn")
        for part, learned in parts:
            ids += part
            labels += part if learned else [IGNORED] * len(part)
        return Example(np.array(ids, np.int32), np.array(labels, np.int32))

    def _parts(self, messages: tuple[Message, ...]) -> list[tuple[list[int], bool]]:
        """The parts in order: token ids, and whether they are learned."""
        if self._chat is not None:
            turns = [*self._chat.system(), *self._asked(messages)]
            parts, before = [], ""
            for text, learned in self._turns(turns, self._chat):
                parts.append((self._encode(text, before), learned))
                before += text
        else:
            if len(messages) != 2:
                raise UnusableConversationError(
                    f"{len(messages)} turns, where prompt.template {self.prompt.template} holds two"
                )
            asked, answered = messages
            if thoughts := [name for name in THOUGHTS if name in answered]:
                message = f"a turn's {thoughts[0]}, for which prompt.template {self.prompt.template} has no place"
                raise UnusableConversationError(message)
            problem = Problem(id="", text=asked["content"], answer="")
            question = Renderer(self.tokenizer, self.prompt).render(problem)
            parts = [
                (list(question.token_ids), False),
                (self._encode(answered["content"], question.text), UNLEARNED not in answered),
            ]
        last, _ = parts[-1]
        if last[-1:] != [self.tokenizer.eos_token_id]:
            last.append(self.tokenizer.eos_token_id)
        return parts

    def _encode(self, text: str, before: str) -> list[int]:
        """Encode a text that continues `before`, without special tokens, because the template has already written
        them."""
        alone = self._ids(text)
        if not before or not self._spaces_texts:
            return alone
        head, whole = self._ids(before), self._ids(before + text)
        return whole[len(head) :] if whole[: len(head)] == head else alone

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _asked(self, messages: tuple[Message, ...]) -> list[Message]:
        """The conversation with `prompt.instruction` appended to each user turn."""
        asked = []
        for message in messages:
            if message["role"] == "user" and self.prompt.instruction:
                message = {**message, "content": f"{message['content']}\n{self.prompt.instruction}"}
            asked.append(message)
        return asked

    def _turns(self, messages: list[Message], chat: ChatTemplate) -> list[tuple[str, bool]]:
        """The rendered conversation, cut where each assistant turn begins and ends.

        Some templates render a turn differently once others follow it (they remove its thinking). Then only the turns
        after it are learned, and each sees the conversation as the sampler would.
        """
        cuts: list[tuple[str, bool]] = []
        said = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _rendered(chat, messages[:index], ask=True)
            after = _rendered(chat, messages[: index + 1], ask=False)
            if not after.startswith(before):
                try:
                    after = before + _in_open_thought(before, after, message)
                except UnusableConversationError:
                    if message is messages[-1]:
                        raise
                    cuts, said = [], ""  # it is what the later turns are asked after
                    continue
            if cuts and not before.startswith(said):
                # Phi-3's template ends the conversation as a whole, not each answer, with the end-of-sequence token.
                answer, is_learned = cuts[-1]
                bare = answer.removesuffix(str(self.tokenizer.eos_token)).rstrip()
                cuts[-1], said = (bare, is_learned), said.removesuffix(answer) + bare
            if not before.startswith(said):
                cuts, said = [], ""
            turn = after[len(before) :].rstrip()
            for name in THOUGHTS:
                if message.get(name, "").strip() not in turn:
                    raise UnusableConversationError(f"the chat template leaves out a turn's {name}")
            cuts += [(before[len(said) :], False), (turn, UNLEARNED not in message)]
            said = before + turn
        return cuts


def _rendered(chat: ChatTemplate, messages: list[Message], *, ask: bool) -> str:
    try:
        return chat.render(messages, ask=ask)
    except TemplateError as error:
        raise UnusableConversationError(f"the chat template refuses it: {error}") from error


def _in_open_thought(before: str, after: str, message: Message) -> str:
    """The answer as it continues a prompt, `before`, in which the chat template has opened the thought, if the template
    leaves the thought out of an answered turn, at the end of `after` (DeepSeek-R1's does both).

    Raises `UnusableConversationError` if the prompt differs from the rendered conversation in any other way.
    """
    mark = open_thought(before)
    prompt, _, space = before.rpartition(mark) if mark else (before, "", "")
    if not mark or not after.startswith(prompt):
        reason = "the chat template renders a question differently once it is answered"
        thinks = any(name in message for name in THOUGHTS) or "</think>" in message["content"]
        if thinks and before.rstrip().endswith("</think>"):
            reason = "a thought, which the chat template has ended in the prompt (see prompt.template_arguments)"
        raise UnusableConversationError(reason)
    closing, written = f"</{mark[1:]}", after[len(prompt) :].rstrip()
    told, ended, _ = message["content"].partition(closing)
    thoughts = [told.strip().removeprefix(mark)] if ended else [message[key] for key in THOUGHTS if key in message]
    if not thoughts or closing in written:
        raise UnusableConversationError(f"no thought, and the chat template opens one in the prompt ({mark})")
    begin, between = "" if space else "\n", "" if ended else "\n\n"
    return f"{begin}{thoughts[0].strip()}\n{closing}{between}{written}"


def read_template(name: str) -> str:
    """Read `data.chat_template`: a built-in template by name, or a file."""
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if not Path(name).is_file():
        raise FileNotFoundError(f"data.chat_template: no such file: {name}, and not `tulu`")
    return read_text(Path(name))


def load_examples(config: SftConfig, tokenizer: Any) -> Examples:
    """Load the examples to test on and to learn from; from an endless source, as many as the run uses.

    Raises `ValueError` when no training example is left.
    """
    data = config.data
    if config.prompt.template == "chat" and not tokenizer.chat_template:
        raise ValueError(
            "prompt.template is 'chat' but the model has no chat template (a base model?); "
            "set data.chat_template, or another prompt.template for single questions and answers"
        )
    dropped = Dropped()
    renderer = ExampleRenderer(tokenizer, config.prompt)

    def usable(conversations: Iterator[Conversation]) -> Iterator[Example]:
        for conversation in conversations:
            try:
                example = renderer.example(conversation)
            except UnusableConversationError as reason:
                dropped.drop(str(reason), conversation.id)
                continue
            if len(example.input_ids) > data.max_tokens:
                dropped.drop(f"over data.max_tokens ({data.max_tokens})", conversation.id)
            else:
                yield example

    held, learned = streams(data, dropped)
    test = list(itertools.islice(usable(held), data.test_size))
    train = list(itertools.islice(usable(learned), wanted(config)))
    found = Examples(train=train, test=test, dropped=dropped)
    if not train:
        source = f"data.source {data.source!r}" if data.path is None else f"data.path: {data.path}"
        message = f"{source} left nothing to learn from: {found.describe()}{remedy(dropped.counts)}"
        way_out_of_test = f"; lower data.test_size ({data.test_size}), which took every usable example for testing"
        raise ValueError(message + way_out_of_test if test else message)
    return found


def wanted(config: SftConfig) -> int | None:
    """The number of training examples to take; None for all."""
    if config.data.is_endless:
        if config.train.steps is None:
            raise ValueError(f"data.source {config.data.source} has no end: give data.limit, or train.steps")
        return config.train.steps * config.train.batch_size
    return config.data.limit
