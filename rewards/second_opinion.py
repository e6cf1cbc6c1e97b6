r"""Completion and reference → what other judges say, to find where they disagree with ours. None decides a reward.

They run as reward functions in the grading workers, under the same limits, so each function returns one number.
"""

from __future__ import annotations

import re

from rewards.equality.defined import is_defined
from rewards.judge import own_answer
from rewards.reading.parse import Unparsed, parse
from rewards.reading.phrases import fold
from rewards.reading.read import read
from rewards.reading.shapes import Expression, Unusable
from rewards.spelling.clean import Unreadable, clean
from rewards.spelling.split import quoted_items
from rewards.types import MATH_VERIFY, PLAIN

_BOX_TAIL = re.compile(r"\\boxed\s*\{(.*)", re.DOTALL)


def opinions(completion: str, reference: str, problem: str) -> float:
    """The sum of the bits, `PLAIN` and `MATH_VERIFY`, of the judges that say correct."""
    bits = PLAIN if plain(completion, reference) else 0
    return float(bits + (MATH_VERIFY if math_verify_as_shipped(completion, reference) else 0))


def plain(completion: str, reference: str) -> bool:
    """Whether the texts or floats are equal after removing spaces, dollar signs and commas, as many graders do."""
    answer = _last_box(completion) or completion.strip().rsplit("\n", 1)[-1]
    left, right = (re.sub(r"[\s$,]|\\[,!;]", "", text).rstrip(".") for text in (answer, reference))
    if left == right:
        return True
    try:
        return abs(float(left) - float(right)) <= 1e-6 * max(1.0, abs(float(right)))
    except ValueError:
        return False


def math_verify_as_shipped(completion: str, reference: str) -> bool:
    """math-verify with its own lenient settings: any match, three decimals, sets compared with relations."""
    from math_verify import parse, verify

    gold = parse(f"${reference}$", parsing_timeout=None)
    target = parse(completion, parsing_timeout=None)
    return bool(
        verify(gold, target, float_rounding=3, strict=False, allow_set_relation_comp=True, timeout_seconds=None)
    )


def _last_box(completion: str) -> str | None:
    start = completion.rfind("\\boxed")
    match = _BOX_TAIL.match(completion, start) if start >= 0 else None
    if match is None:
        return None
    depth = 1
    for position, character in enumerate(match.group(1)):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return match.group(1)[:position]
    return None


def understands(completion: str, reference: str, problem: str) -> float:
    """1.0 if a reference is read as something that other spellings can equal, 0.0 if only its own text can equal it."""
    own = own_answer(reference)
    try:
        node = read(clean(own))
    except Unreadable:
        return 0.0
    if quoted_items(own):
        return 0.0  # all of them, or any: nothing says
    if isinstance(node, Unusable):
        return 0.0
    if isinstance(node, Expression):
        try:
            return float(is_defined(parse(node.latex)))
        except Unparsed:
            return float(fold(node.latex).isalpha())
    return 1.0
