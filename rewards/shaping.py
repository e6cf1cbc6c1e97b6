"""Completion → small additions to the reward: form, length, repetition. All are off by default.

Each term is a pure function of one item, linear in its length, and is computed in the caller's process; the table
at the end lists them. A user's own function runs in the workers instead (`rewards.function`).
"""

from __future__ import annotations

from collections.abc import Callable

from rewards.config import RewardConfig
from rewards.extraction.boxes import find_boxes
from rewards.extraction.marks import mark_of, open_thought, thought_marks
from rewards.types import GradeItem

MAX_SHAPED_CHARS = 400_000


def format_term(completion: str, *, think: bool) -> float:
    """1.0 if the form is right: think tags paired and in order, and exactly one box, which is outside the thought.

    With `think`, the completion must begin with a thought and have only that one. A thought that the prompt opened
    counts as the completion's: its opening mark is passed as part of the completion.
    """
    marks = thought_marks(completion)
    if marks:
        (first, family), (last, other) = mark_of(marks[0]), mark_of(marks[-1])
        if len(marks) != 2 or (first, last) != ("open", "close") or family != other:
            return 0.0
    if think and not (marks and not completion[: marks[0].start()].strip()):
        return 0.0
    boxes = find_boxes(completion[marks[-1].end() :] if marks else completion)
    return 1.0 if len(boxes.complete) == 1 and not boxes.unfinished and not boxes.complete[0].nested else 0.0


def overlong_term(tokens: int | None, max_tokens: int | None, *, buffer: int) -> float:
    """DAPO's soft penalty: 0 up to max - buffer, then falling linearly to -1 at max; -1 beyond.

    See equation 13 of DAPO (arXiv 2503.14476). Without the two lengths the penalty is 0.
    """
    if tokens is None or max_tokens is None:
        return 0.0
    excess = tokens - (max_tokens - buffer)
    return -min(1.0, max(0.0, excess / buffer))


def repetition_term(completion: str, *, ngram: int) -> float:
    """Minus the fraction of word n-grams that occurred before: 0 for fresh text, near -1 for a loop."""
    words = completion[-MAX_SHAPED_CHARS:].split()
    total = len(words) - ngram + 1
    if total < 1:
        return 0.0
    seen = {hash(tuple(words[i : i + ngram])) for i in range(total)}
    return -(1.0 - len(seen) / total)


Term = Callable[[GradeItem, RewardConfig], float]

TERMS: dict[str, Term] = {
    "format": lambda item, c: (
        c.format_weight * format_term(open_thought(item.prompt) + item.completion, think=c.format_think)
    ),
    "overlong": lambda item, c: (
        c.overlong_weight * overlong_term(item.tokens, item.max_tokens, buffer=c.overlong_buffer_tokens)
    ),
    "repetition": lambda item, c: c.repetition_weight * repetition_term(item.completion, ngram=c.repetition_ngram),
}
_WEIGHTS = {"format": "format_weight", "overlong": "overlong_weight", "repetition": "repetition_weight"}


def shaping_terms(item: GradeItem, config: RewardConfig) -> dict[str, float]:
    """The weighted value of every enabled term."""
    return {name: term(item, config) for name, term in TERMS.items() if getattr(config, _WEIGHTS[name]) > 0}
