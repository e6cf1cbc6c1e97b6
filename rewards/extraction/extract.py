r"""Completion → its final answer, by one rule (docs/rewards.md, "What counts as the answer").

The answer is the last complete `\boxed{…}` outside an unfinished thought. Boxes side by side form one
list. An earlier box that differs must be superseded by the words between, or there is no single answer.
Where the configuration allows, a last line "the answer is …" or "#### n" is taken when there is no box.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards.extraction import surroundings
from rewards.extraction.boxes import Box, Boxes, find_boxes
from rewards.extraction.turns import own_words

MAX_DIFFERENT_BOXES = 4
MAX_GAP = 120

_SEPARATOR = re.compile(
    r"(?:\s|[,;.&|*•$-]|\\[()\[\],;:! ]|\\\\|\\q?quad|\\text(?:bf|rm)?|\\mbox|[{}]|\b(?:and|or)\b"
    r"|\bfor (?:part )?\(?(?:[a-z]|[ivx]+|\d)\)|\(?(?:[a-z]|[ivx]+|\d)\)(?=\s))*",
)
_LABEL = re.compile(r"(?P<label>[A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?)\s*=\s*(?:\s|[$({]|\\[(\[])*$")
_ANSWER_LINE = re.compile(
    r"(?:^|.*[.!?:;,]\s+|.*\b(?:so|thus|hence|therefore),?\s+|\W*)(?:the\s+|my\s+)?(?:final\s+|correct\s+)?answer"
    r"(?:\s+(?:is|equals)|\s*[:=])\s*(?P<answer>\S.*)$",
    re.IGNORECASE,
)
_HASHES_LINE = re.compile(r"^\s*####\s*(?P<answer>\S.*?)\s*$")
MAX_LINE = 400


@dataclass(frozen=True, slots=True)
class Extracted:
    """What the completion offers as its answer, and what else has to be checked about it."""

    answer: str
    tail: str = ""
    """What the completion says after the answer."""
    several: bool = False
    """The answer was put together from several boxes side by side."""


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no answer to compare: `rule` says why, `answer` is the box it is about, if any."""

    rule: str
    answer: str | None = None
    rivals: tuple[str, ...] = ()
    """The other boxes, when there are several: if all say the same, it was one answer after all."""


def extract(completion: str, forms: tuple[str, ...]) -> Extracted | Refused:
    """Try the allowed forms in order. A refusal that is about a box is final; a missing form is not."""
    outcome: Extracted | Refused = Refused("no_form_allowed")
    for form in forms:
        outcome = FORMS[form](completion)
        if isinstance(outcome, Extracted) or outcome.answer is not None:
            break
    return outcome


def boxed(completion: str) -> Extracted | Refused:
    r"""The last complete `\boxed{…}`."""
    everything = find_boxes(completion)
    if not everything.complete:
        return Refused("no_complete_box")
    speech = own_words(completion, first_box_end=everything.complete[0].end)
    text = speech.said
    boxes = everything if text == completion else find_boxes(text)
    if not boxes.complete and speech.thought:
        text = speech.thought
        boxes = find_boxes(text)
    if not boxes.complete:
        return Refused("no_complete_box")
    last = boxes.complete[-1]
    if speech.goes_on:
        return Refused("another_turn_follows", last.content)
    tail = text[last.end :] + (speech.said if text is speech.thought else "")
    return _settle(text, boxes, tail)


def _settle(text: str, boxes: Boxes, tail: str) -> Extracted | Refused:
    """Decide among the boxes of the final text which one, or which row of them, is the answer."""
    last = boxes.complete[-1]
    if last.nested:
        return Refused("nested_boxes", last.content)
    if not last.content.strip():
        return Refused("empty_box")
    group = _side_by_side(text, boxes.complete)
    for rule, applies in (
        ("negated", surroundings.is_negated(text, group[0].start, last.end)),
        ("alternatives", surroundings.is_alternative(text, group[0].start, last.end)),
        ("retracted", surroundings.is_retracted(tail)),
        ("unfinished_box_follows", _unfinished_differs(text, boxes, last)),
        ("several_boxes", _several_answers(text, boxes.complete, group)),
    ):
        if applies:
            return Refused(rule, last.content, _rivals(boxes.complete) if rule == "several_boxes" else ())
    contents = list(dict.fromkeys(_squeeze(box.content) for box in group))
    if len(contents) == 1:
        return Extracted(last.content, tail)
    return Extracted(", ".join(_labelled(text, group)), tail, several=True)


def _rivals(boxes: tuple[Box, ...]) -> tuple[str, ...]:
    contents = tuple(dict.fromkeys(_squeeze(box.content) for box in boxes))
    return contents if len(contents) <= MAX_DIFFERENT_BOXES else ()


def _side_by_side(text: str, boxes: tuple[Box, ...]) -> list[Box]:
    """The last box and those before it that only separators and labels set apart."""
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = text[box.end : group[0].start]
        if len(gap) > MAX_GAP or box.nested or not _is_separator(gap):
            break
        group.insert(0, box)
    return group


def _is_separator(gap: str) -> bool:
    return _SEPARATOR.fullmatch(_LABEL.sub("", gap)) is not None


def _labelled(text: str, group: list[Box]) -> list[str]:
    r"""`y_1 = \boxed{2} and y_2 = \boxed{3}` reads as `y_1=2, y_2=3`; without labels, as a list."""
    labels = [_LABEL.search(text[max(0, box.start - 40) : box.start]) for box in group]
    if all(labels):
        return [f"{label.group('label')}={box.content}" for label, box in zip(labels, group, strict=True) if label]
    return [box.content for box in group]


def _several_answers(text: str, boxes: tuple[Box, ...], group: list[Box]) -> bool:
    """An earlier box differs, and nothing between says that it was a step or a mistake."""
    final = {_squeeze(box.content) for box in group}
    others = [box for box in boxes[: len(boxes) - len(group)] if _squeeze(box.content) not in final]
    if not others:
        return False
    if len({_squeeze(box.content) for box in others}) >= MAX_DIFFERENT_BOXES:
        return True
    previous = others[-1]
    gap = text[previous.end : group[0].start]
    if surroundings.corrects(gap):
        return False
    if surroundings.is_claimed(text, previous.start):
        return True
    return surroundings.choice_between(gap[-400:]) or not surroundings.supersedes(gap)


def _unfinished_differs(text: str, boxes: Boxes, last: Box) -> bool:
    """A box that was begun after the last complete one, with other content, takes its place."""
    begun = [inside for inside in boxes.unfinished if inside > last.end]
    if not begun:
        return False
    started = _squeeze(text[begun[-1] :])
    return not _squeeze(last.content).startswith(started)


def _squeeze(content: str) -> str:
    return re.sub(r"\s+", "", content)


def answer_is(completion: str) -> Extracted | Refused:
    """A last line that ends in "answer is …" or "answer: …", for base models that were never taught boxes."""
    return _from_last_line(completion, _ANSWER_LINE)


def gsm8k_hashes(completion: str) -> Extracted | Refused:
    """A last line `#### n`, the form of the GSM8K training solutions."""
    return _from_last_line(completion, _HASHES_LINE)


def _from_last_line(completion: str, pattern: re.Pattern[str]) -> Extracted | Refused:
    speech = own_words(completion, first_box_end=None)
    lines = speech.said.rstrip().rsplit("\n", 1)
    match = pattern.match(lines[-1][:MAX_LINE].strip(" *_")) if len(lines[-1]) <= MAX_LINE else None
    if match is None:
        return Refused("no_answer_line")
    answer = match.group("answer").strip().strip("*").rstrip(".").strip()
    if speech.goes_on:
        return Refused("another_turn_follows", answer)
    return Extracted(answer)


FORMS: dict[str, Callable[[str], Extracted | Refused]] = {
    "boxed": boxed,
    "answer_is": answer_is,
    "gsm8k_hashes": gsm8k_hashes,
}
