r"""Other judges than ours, for looking at where they differ. None of them decides a reward.

They run as a reward function in the grading workers, with the same limits, and answer in one number each.
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

PLAIN = 1
MATH_VERIFY = 2

_BOX_TAIL = re.compile(r"\\boxed\s*\{(.*)", re.DOTALL)


def opinions(completion: str, reference: str, problem: str) -> float:
    """Sum of the judges that say correct: `PLAIN`, `MATH_VERIFY`."""
    said = PLAIN if plain(completion, reference) else 0
    return float(said + (MATH_VERIFY if math_verify_as_shipped(completion, reference) else 0))


def plain(completion: str, reference: str) -> bool:
    """Equal text or equal floats, after removing spaces, dollar signs and commas: what many graders do."""
    answer = _last_box(completion) or completion.strip().rsplit("\n", 1)[-1]
    left, right = (re.sub(r"[\s$,]|\\[,!;]", "", text).rstrip(".") for text in (answer, reference))
    if left == right:
        return True
    try:
        return abs(float(left) - float(right)) <= 1e-6 * max(1.0, abs(float(right)))
    except ValueError:
        return False


def math_verify_as_shipped(completion: str, reference: str) -> bool:
    """math-verify with lenient settings of its own: any match, three decimals, sets against relations."""
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
    """1.0 when a reference is read as something that other spellings can equal, 0.0 when only its own text can."""
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
