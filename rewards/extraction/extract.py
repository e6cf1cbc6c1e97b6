r"""Completion → its final answer, by one rule (docs/rewards.md, "What counts as the answer").

The answer is the last complete `\boxed{…}` outside an unfinished thought. Boxes side by side form one
list. If an earlier box differs, the text between must say that it is superseded, or there is no single answer.
If there is no box, a last line "the answer is …" or "#### n" counts, provided the configuration allows it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from rewards.extraction import surroundings
from rewards.extraction.boxes import Box, Boxes, find_boxes
from rewards.extraction.turns import own_words

MAX_DIFFERENT_BOXES = 4
MAX_GAP = 120

_SEPARATOR = re.compile(
    r"(?:\s|[,;.&|*•$-]|\\[()\[\],;:! ]|\\\\|\\q?quad|\\text(?:bf|rm)?|\\mbox|[{}]|\b(?:and|und|et|и)\b|[和与、，]"
    rf"|{surroundings.OR}|\bfor (?:part )?\(?(?:[a-z]|[ivx]+|\d)\)|\(?(?:[a-z]|[ivx]+|\d)\)(?=\s))*",
)
_OR = re.compile(surroundings.OR)
_LABEL = re.compile(r"(?P<label>[A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?)\s*=\s*(?:\s|[$({]|\\[(\[])*$")
_ANSWER = r"(?:the\s+|my\s+)?(?:final\s+|correct\s+)?answer"
_COPULA = r"\s+(?:is|equals|would be|should be|must be|will be)"
_ANSWER_LINE = re.compile(
    rf"(?:^|.*[.!?:;,]\s+|.*\b(?:so|thus|hence|therefore),?\s+|\W*){_ANSWER}"
    rf"(?:{_COPULA}(?:\s+(?:therefore|thus|then|hence|simply|just))?\s*[:=]*|\s*[:=]+)\s*(?P<answer>[^\s:=].*)$",
    re.IGNORECASE,
)
_ANSWER_ABOVE = re.compile(
    rf"(?:.*[.!?:;,]\s+|.*\b(?:so|thus|hence|therefore),?\s+|\W*){_ANSWER}(?:(?:{_COPULA})?\s*[:=]|{_COPULA})\s*$"
    rf"|\W*{_ANSWER}\s*$",
    re.I,
)
"""A line or heading that announces the answer, which is on the next line."""
_ANNOUNCED = re.compile(
    rf"\\text(?:bf|rm|it)?\s*\{{\s*{_ANSWER}(?:{_COPULA})?\s*:?\s*\}}\s*:?|\b{_ANSWER}(?:{_COPULA})?\s*:?", re.I
)
_ANNOUNCED_IN_TEXT = re.compile(rf"\\text(?:bf|rm|it)?\s*\{{\s*({_ANSWER}(?:{_COPULA})?\s*:?)\s*\}}", re.I)
_EMPHASIS = tuple(
    re.compile(rf"(?<![\w)]){mark}(?=\S)(.+?)(?<=\S){mark}(?![\w(])") for mark in (r"\*\*", "__", r"\*", "_", "`")
)
_HOPE = re.compile(r"(?<=\.)\s*I hope (?:it|this|that) is correct\.?$", re.I)
"""Ends the answers of few-shot prompts after Minerva's."""
_HASHES_LINE = re.compile(r"^\s*####\s*(?P<answer>\S.*?)\s*$")
_LONE_VALUE = re.compile(r"(?![-+] |\d+[.)] |\[\^?\d+\])(?=\D*\d)(?:[-+\d.,/\s{}^()%\[\]]|\\[A-Za-z]+|\\[()\[\]])+")
"""And no item of a list, which tells a part of the answer, and no number of a source, as in [1]."""
MAX_LINE = 400
_TEXT = re.compile(r"\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}\s*")
_OPERATORS = frozenset("-*|&")
"""Characters that separate boxes side by side, but are operators inside a box."""
_ONLY_MARKS = " \t\r$\\[]`*_"
"""A line of only these characters opens or closes a formula."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer of a completion, with what is needed for further checks."""

    answer: str
    tail: str = ""
    """The text after the answer."""
    closing: str = ""
    """A value that stands alone on the last line, if the box is in the thought before it."""
    alternative: str = ""
    """A second value offered after the answer, which has to agree with it: `\\boxed{\\frac12} or 0.5`."""
    several: bool = False
    """Whether the answer was assembled from several boxes side by side."""


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no answer to compare: `rule` says why, and `answer` is the box concerned, if any."""

    rule: str
    answer: str | None = None
    rivals: tuple[str, ...] = ()
    """The differing boxes, if that is why: if all turn out to be equal, there was one answer after all."""


def extract(completion: str, forms: tuple[str, ...]) -> Extracted | Refused:
    """Try the allowed forms in order. A refusal because of a box is final; if a form is merely absent, the next is
    tried."""
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
    closing = ""
    if not boxes.complete and speech.thought:
        text = speech.thought
        boxes = find_boxes(text)
        closing = _lone_value(speech.said)
    if not boxes.complete:
        return Refused("no_complete_box")
    last = boxes.complete[-1]
    if speech.goes_on:
        return Refused("another_turn_follows", last.content)
    tail = text[last.end :] + (speech.said if text is speech.thought else "")
    found = _settle(text, boxes, tail)
    return replace(found, closing=closing) if isinstance(found, Extracted) else found


def _settle(text: str, boxes: Boxes, tail: str) -> Extracted | Refused:
    """Decide which of the text's boxes, or which row of boxes, is the answer."""
    last = boxes.complete[-1]
    content = _unwrapped(last.content) if last.nested else last.content
    if content is None:
        return Refused("nested_boxes", last.content)
    if not content.strip():
        return Refused("empty_box")
    group = _side_by_side(text, boxes.complete)
    for rule, applies in (
        ("negated", surroundings.is_negated(text, group[0].start, last.end)),
        ("sign_before_box", any(surroundings.has_sign_before(text, box.start) for box in group)),
        ("alternatives", surroundings.is_alternative(text, group[0].start, last.end)),
        ("retracted", surroundings.is_retracted(tail)),
        ("unfinished_box_follows", _unfinished_differs(text, boxes, last)),
        ("several_boxes", _several_answers(text, boxes.complete, group)),
    ):
        if applies:
            return Refused(rule, last.content, _rivals(boxes.complete) if rule == "several_boxes" else ())
    contents = list(dict.fromkeys(_squeeze(box.content) for box in group))
    if len(contents) == 1:
        return Extracted(content, tail, alternative=surroundings.same_again(text, last.end))
    offered = any(_OR.search(text[one.end : other.start]) for one, other in itertools.pairwise(group))
    joint = r" \text{ or } " if offered else ", "
    answer = joint.join(_labelled(text, group, [box.content for box in group]))
    return Extracted(answer, tail, alternative=surroundings.same_again(text, last.end), several=True)


def _unwrapped(content: str) -> str | None:
    r"""The answer in a box that adds nothing to its boxes: `\boxed{17}`, `x = \boxed{17}`, `\boxed{2}, \boxed{3}`.

    None if the outer box says more: `4 \boxed{5}` could mean 45 or 20.
    """
    inner = find_boxes(content).complete
    if not inner:
        return None
    values = [_unwrapped(box.content) if box.nested else box.content for box in inner]
    gaps = [content[one.end : other.start] for one, other in itertools.pairwise(inner)]
    before, after = _ANNOUNCED.sub("", content[: inner[0].start]), content[inner[-1].end :]
    if None in values or not all(gap.strip() and _is_separator(gap) and not _OR.search(gap) for gap in gaps):
        return None
    if len(inner) == 1 and _TEXT.fullmatch(after):
        values, after = [f"{values[0]}{after}"], ""  # a unit, or words for `reading` to judge
    if "{" in before or any(set(gap) & _OPERATORS or not _is_separator(gap) for gap in (before, *gaps, after)):
        return None
    return ", ".join(_labelled(content, list(inner), [value or "" for value in values]))


def _rivals(boxes: tuple[Box, ...]) -> tuple[str, ...]:
    contents = tuple(dict.fromkeys(_squeeze(box.content) for box in boxes))
    return contents if len(contents) <= MAX_DIFFERENT_BOXES else ()


def _side_by_side(text: str, boxes: tuple[Box, ...]) -> list[Box]:
    """The last box and the boxes before it with only separators and labels between them."""
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        gap = text[box.end : group[0].start]
        if len(gap) > MAX_GAP or box.nested or not _is_separator(gap):
            break
        group.insert(0, box)
    return group


def _is_separator(gap: str) -> bool:
    return _SEPARATOR.fullmatch(_LABEL.sub("", gap)) is not None


def _labelled(text: str, group: list[Box], values: list[str]) -> list[str]:
    r"""The values with their labels, if all have one: `y_1 = \boxed{2} and y_2 = \boxed{3}` becomes `y_1=2, y_2=3`."""
    labels = [_LABEL.search(text[max(0, box.start - 40) : box.start]) for box in group]
    if all(labels):
        return [f"{label.group('label')}={value}" for label, value in zip(labels, values, strict=True) if label]
    return values


def _several_answers(text: str, boxes: tuple[Box, ...], group: list[Box]) -> bool:
    """Whether an earlier box differs, and nothing in between says that it was a step or a mistake."""
    final = {_squeeze(box.content) for box in group}
    others = [box for box in boxes[: len(boxes) - len(group)] if _squeeze(box.content) not in final]
    if not others:
        return False
    if len({_squeeze(box.content) for box in others}) >= MAX_DIFFERENT_BOXES:
        return True
    previous = others[-1]
    gap = text[previous.end : group[0].start]
    if surroundings.is_hedged(gap, text[group[-1].end :]):
        return True
    if surroundings.corrects(gap) or surroundings.was_first_thought(text[: previous.start], gap):
        return False
    if surroundings.is_claimed(text, previous.start):
        return True
    return surroundings.choice_between(gap[-400:]) or not surroundings.supersedes(gap)


def _unfinished_differs(text: str, boxes: Boxes, last: Box) -> bool:
    """Whether an unfinished box with other content follows the last complete one, which it then supersedes."""
    begun = [inside for inside in boxes.unfinished if inside > last.end]
    if not begun:
        return False
    started = _squeeze(text[begun[-1] :])
    return not _squeeze(last.content).startswith(started)


def _squeeze(content: str) -> str:
    return re.sub(r"\s+", "", content)


def answer_is(completion: str) -> Extracted | Refused:
    """A last line that ends in "answer is …" or "answer: …", for base models that were never taught boxes.

    The value may also be on the line after it.
    """
    lines, goes_on = _last_lines(completion)
    *above, last = [_plain(line) for line in lines] or [""]
    match = _ANSWER_LINE.match(last)
    if match:
        return _line_answer(match.group("answer"), goes_on)
    if above and last and _ANSWER_ABOVE.match(above[-1]):
        return _line_answer(last, goes_on)
    return Refused("no_answer_line")


def gsm8k_hashes(completion: str) -> Extracted | Refused:
    """A last line `#### n`, the form of the solutions in GSM8K's training set."""
    lines, goes_on = _last_lines(completion)
    match = _HASHES_LINE.match(lines[-1]) if lines else None
    return _line_answer(match.group("answer"), goes_on) if match else Refused("no_answer_line")


def _last_lines(completion: str) -> tuple[list[str], bool]:
    """The last two non-empty lines, or none if the last is too long for an answer; and whether another turn follows."""
    speech = own_words(completion, first_box_end=None)
    lines = [line for line in speech.said[-3 * MAX_LINE :].split("\n") if line.strip(_ONLY_MARKS)][-2:]
    return ([] if lines and len(lines[-1]) > MAX_LINE else lines), speech.goes_on


def _plain(line: str) -> str:
    """A line without its Markdown and `\\textbf` headings: **Answer:** **73**. → Answer: 73."""
    line = line.strip().lstrip("#>").strip()
    line = _ANNOUNCED_IN_TEXT.sub(r"\1", line.strip("$ ") if _ANNOUNCED_IN_TEXT.search(line) else line)
    for pattern in _EMPHASIS:
        line = pattern.sub(r"\1", line)
    return line.strip(" *_")


def _lone_value(text: str) -> str:
    """6 of a last line **6**, which answers as a box would."""
    lines = [line for line in text[-3 * MAX_LINE :].split("\n") if line.strip(_ONLY_MARKS)]
    last = _plain(lines[-1]).strip("$ .") if lines else ""
    return last if _LONE_VALUE.fullmatch(last) else ""


def _line_answer(answer: str, goes_on: bool) -> Extracted | Refused:
    answer = _HOPE.sub("", answer.strip()).strip("*").rstrip(".").strip()
    return Refused("another_turn_follows", answer) if goes_on else Extracted(answer)


FORMS: dict[str, Callable[[str], Extracted | Refused]] = {
    "boxed": boxed,
    "answer_is": answer_is,
    "gsm8k_hashes": gsm8k_hashes,
}
