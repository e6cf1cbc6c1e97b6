"""Completion → the part of it that can be the policy's own final answer.

Text after an unfinished `<think>` is thought, not answer, and text after a turn marker is an invented
conversation. The answer may be in neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.extraction.marks import LEADING_MARKS, PLAIN_TURN, ROLE_WORDS, TURN_MARK, mark_of, thought_marks


@dataclass(frozen=True, slots=True)
class Speech:
    """The text that may contain the answer, split into the thought and what follows it."""

    thought: str
    said: str
    goes_on: bool
    """Whether another turn of the dialogue, with words in it, follows."""


def own_words(completion: str, *, first_box_end: int | None) -> Speech:
    """Cut a completion off at the first turn that is not the policy's, and split off its thought.

    Plain markers ("User:") are everyday words in a solution, so they only count after the first box.
    """
    leading = LEADING_MARKS.match(completion)
    begin = leading.end() if leading else 0
    cut, speaks = len(completion), True
    special = TURN_MARK.search(completion, begin) if "<" in completion or "INST]" in completion else None
    if special:
        cut = special.start()
    if first_box_end is not None:
        plain = PLAIN_TURN.search(completion, first_box_end, cut)
        if plain:
            # An invented next problem, as base models write them, ends the answer; another speaker invalidates it.
            cut, speaks = plain.start(), plain.group("speaker") is not None
    rest = ROLE_WORDS.sub("", completion[cut:])
    thought, said = _split_thought(completion[begin:cut])
    return Speech(thought=thought, said=said, goes_on=speaks and re.search(r"\w", rest) is not None)


def _split_thought(text: str) -> tuple[str, str]:
    """The finished thought and the text after it. An unfinished thought is in neither."""
    last_close = None
    unfinished = None
    for mark in thought_marks(text):
        if mark_of(mark)[0] == "close":
            last_close, unfinished = mark, None
        elif unfinished is None:
            unfinished = mark.start()
    said_from = last_close.end() if last_close else 0
    thought = text[: last_close.start()] if last_close else ""
    return thought, text[said_from:unfinished]
