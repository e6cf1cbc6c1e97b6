"""Completion → the part of it that is the policy's own final word.

What comes after an unfinished `<think>` is thought, not answer. What comes after a turn marker is an
invented conversation. Neither may hold the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINK = re.compile(r"<(?P<close>/?)(?:think|thinking|thought|reasoning)>")
_SPECIAL_TURN = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|eot_id\|>|<\|start_header_id\|>|<\|endoftext\|>|<\|end_of_text\|>"
    r"|<\|user\|>|<\|assistant\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|</s>|<｜User｜>|<｜Assistant｜>"
)
_PLAIN_TURN = re.compile(
    r"\n[ \t]*(?:#+[ \t]*|\*\*)?(?:(?P<speaker>User|Human|Assistant|System)|Instruction|Q|Question|Problem|Prompt)"
    r"(?:\*\*)?[ \t]*(?:\d+[ \t]*)?(?::|\n)",
)
_LEADING_ROLE = re.compile(r"\s*(?:<\|im_start\|>\s*assistant\b|<\|assistant\|>|<｜Assistant｜>)\s*")
_ROLE_WORDS = re.compile(r"<\|?[^<>|\n]{1,30}\|?>|[<\[][/\w|｜]{1,20}[>\]]|\b(?:user|assistant|human|system)\b:?", re.I)


@dataclass(frozen=True, slots=True)
class Speech:
    """The text that may hold the answer, cut into the thought and what was said after it."""

    thought: str
    said: str
    goes_on: bool
    """Another turn of dialogue, with words in it, follows."""


def own_words(completion: str, *, first_box_end: int | None) -> Speech:
    """Cut a completion at its first foreign turn and at its thought.

    Plain markers ("User:") are everyday words in a solution, so they only count after a first box.
    """
    leading = _LEADING_ROLE.match(completion)
    begin = leading.end() if leading else 0
    cut, speaks = len(completion), True
    special = _SPECIAL_TURN.search(completion, begin) if "<" in completion or "INST]" in completion else None
    if special:
        cut = special.start()
    if first_box_end is not None:
        plain = _PLAIN_TURN.search(completion, first_box_end, cut)
        if plain:
            # A next problem, as base models invent them, ends the answer; a next speaker spoils it.
            cut, speaks = plain.start(), plain.group("speaker") is not None
    rest = _ROLE_WORDS.sub("", completion[cut:])
    thought, said = _split_thought(completion[begin:cut]) if "<" in completion else ("", completion[begin:cut])
    return Speech(thought=thought, said=said, goes_on=speaks and re.search(r"\w", rest) is not None)


def _split_thought(text: str) -> tuple[str, str]:
    """Finished thought, and what was said outside it. An unfinished thought is in neither."""
    last_close = None
    unfinished = None
    for tag in _THINK.finditer(text):
        if tag.group("close"):
            last_close, unfinished = tag, None
        elif unfinished is None:
            unfinished = tag.start()
    said_from = last_close.end() if last_close else 0
    thought = text[: last_close.start()] if last_close else ""
    return thought, text[said_from:unfinished]
