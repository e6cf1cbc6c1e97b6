r"""Completion → its final answer, by one rule (docs/rewards.md, "What counts as the answer").

The answer is the last complete `\boxed{…}` outside an unfinished thought. Boxes side by side form one
list. An earlier box that differs must be superseded by the words between, or there is no single answer.
Where the configuration allows, a last line "the answer is …" or "#### n" is taken when there is no box.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from rewards.extraction import surroundings
from rewards.extraction.beside import with_sign_and_unit
from rewards.extraction.boxes import Box, Boxes, find_boxes
from rewards.extraction.turns import own_words

MAX_DIFFERENT_BOXES = 4
MAX_GAP = 120

_SEPARATOR = re.compile(
    r"(?:\s|[,;.&|*•$-]|\\[()\[\],;:! ]|\\\\|\\q?quad|\\text(?:bf|rm)?|\\mbox|[{}]|\b(?:and|or)\b"
    r"|\bfor (?:part )?\(?(?:[a-z]|[ivx]+|\d)\)|\(?(?:[a-z]|[ivx]+|\d)\)(?=\s))*",
)
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
"""A line that announces the answer, or a heading; the next one holds it."""
_ANNOUNCED = re.compile(
    rf"\\text(?:bf|rm|it)?\s*\{{\s*{_ANSWER}(?:{_COPULA})?\s*:?\s*\}}\s*:?|\b{_ANSWER}(?:{_COPULA})?\s*:?", re.I
)
_ANNOUNCED_IN_TEXT = re.compile(rf"\\text(?:bf|rm|it)?\s*\{{\s*({_ANSWER}(?:{_COPULA})?\s*:?)\s*\}}", re.I)
_EMPHASIS = tuple(
    re.compile(rf"(?<![\w)]){mark}(?=\S)(.+?)(?<=\S){mark}(?![\w(])") for mark in (r"\*\*", "__", r"\*", "_", "`")
)
_HASHES_LINE = re.compile(r"^\s*####\s*(?P<answer>\S.*?)\s*$")
_LONE_VALUE = re.compile(r"(?![-+] |\d+[.)] )(?=\D*\d)(?:[-+\d.,/\s{}^()%\[\]]|\\[A-Za-z]+|\\[()\[\]])+")
"""And no item of a list, which tells a part of the answer."""
MAX_LINE = 400
_TEXT = re.compile(r"\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}\s*")
_OPERATORS = frozenset("-*|&")
"""Separators between boxes that are mathematics inside one."""
_ONLY_MARKS = " \t\r$\\[]`*_"
"""A line of nothing else opens or closes a formula."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What the completion offers as its answer, and what else has to be checked about it."""

    answer: str
    tail: str = ""
    """What the completion says after the answer."""
    closing: str = ""
    """A value that stands alone at the end of what was said after the thought that holds the box."""
    alternative: str = ""
    """What is offered beside the answer, which it has to agree with: `\\boxed{\\frac12} or 0.5`."""
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


def _settle(text: str, found: Boxes, tail: str) -> Extracted | Refused:
    """Decide among the boxes of the final text which one, or which row of them, is the answer."""
    boxes = Boxes(tuple(with_sign_and_unit(text, box) for box in found.complete), found.unfinished)
    last = boxes.complete[-1]
    content = _unwrapped(last.content) if last.nested else last.content
    if content is None:
        return Refused("nested_boxes", last.content)
    if not content.strip():
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
        return Extracted(content, tail, alternative=surroundings.same_again(text, last.end))
    answer = ", ".join(_labelled(text, group, [box.content for box in group]))
    return Extracted(answer, tail, alternative=surroundings.same_again(text, last.end), several=True)


def _unwrapped(content: str) -> str | None:
    r"""The answer in a box of boxes that adds nothing to them: `\boxed{17}`, `x = \boxed{17}`, `\boxed{2}, \boxed{3}`.

    None where the outer box says more: `4 \boxed{5}` is 45 for one reader and 20 for another.
    """
    inner = find_boxes(content).complete
    if not inner:
        return None
    values = [_unwrapped(box.content) if box.nested else box.content for box in inner]
    gaps = [content[one.end : other.start] for one, other in itertools.pairwise(inner)]
    before, after = _ANNOUNCED.sub("", content[: inner[0].start]), content[inner[-1].end :]
    if None in values or not all(gap.strip() and _is_separator(gap) and "or" not in gap for gap in gaps):
        return None
    if len(inner) == 1 and _TEXT.fullmatch(after):
        values, after = [f"{values[0]}{after}"], ""  # a unit, or words that reading will judge
    if "{" in before or any(set(gap) & _OPERATORS or not _is_separator(gap) for gap in (before, *gaps, after)):
        return None
    return ", ".join(_labelled(content, list(inner), [value or "" for value in values]))


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


def _labelled(text: str, group: list[Box], values: list[str]) -> list[str]:
    r"""`y_1 = \boxed{2} and y_2 = \boxed{3}` reads as `y_1=2, y_2=3`; without labels, as a list."""
    labels = [_LABEL.search(text[max(0, box.start - 40) : box.start]) for box in group]
    if all(labels):
        return [f"{label.group('label')}={value}" for label, value in zip(labels, values, strict=True) if label]
    return values


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
    if surroundings.is_hedged(gap, text[group[-1].end :]):
        return True
    if surroundings.corrects(gap) or surroundings.was_first_thought(text[: previous.start], gap):
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
    """A last line that ends in "answer is …" or "answer: …", for base models that were never taught boxes.

    The value may stand on the line after it.
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
    """A last line `#### n`, the form of the GSM8K training solutions."""
    lines, goes_on = _last_lines(completion)
    match = _HASHES_LINE.match(lines[-1]) if lines else None
    return _line_answer(match.group("answer"), goes_on) if match else Refused("no_answer_line")


def _last_lines(completion: str) -> tuple[list[str], bool]:
    """The last two lines with words, without a line that is too long for an answer; whether another turn follows."""
    speech = own_words(completion, first_box_end=None)
    lines = [line for line in speech.said[-3 * MAX_LINE :].split("\n") if line.strip(_ONLY_MARKS)][-2:]
    return ([] if lines and len(lines[-1]) > MAX_LINE else lines), speech.goes_on


def _plain(line: str) -> str:
    """A line without Markdown and without a heading in `\\textbf`: **Answer:** **73**. → Answer: 73."""
    line = line.strip().lstrip("#>").strip()
    line = _ANNOUNCED_IN_TEXT.sub(r"\1", line.strip("$ ") if _ANNOUNCED_IN_TEXT.search(line) else line)
    for pattern in _EMPHASIS:
        line = pattern.sub(r"\1", line)
    return line.strip(" *_")


def _lone_value(said: str) -> str:
    """6 of a last line **6**, which answers as a box would."""
    lines = [line for line in said[-3 * MAX_LINE :].split("\n") if line.strip(_ONLY_MARKS)]
    last = _plain(lines[-1]).strip("$ .") if lines else ""
    return last if _LONE_VALUE.fullmatch(last) else ""


def _line_answer(answer: str, goes_on: bool) -> Extracted | Refused:
    answer = answer.strip().strip("*").rstrip(".").strip()
    return Refused("another_turn_follows", answer) if goes_on else Extracted(answer)


FORMS: dict[str, Callable[[str], Extracted | Refused]] = {
    "boxed": boxed,
    "answer_is": answer_is,
    "gsm8k_hashes": gsm8k_hashes,
}
