"""One completion and its reference → a judgement. Runs in the worker.

Extract the answer, clean both texts, decide equal texts and plain numbers at once, read both into kinds,
compare. Everything before the reading is cheap and needs no computer algebra: the fast path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.equality.compare import equal
from rewards.equality.mathematics import integer_of
from rewards.extraction.extract import Extracted, Refused, extract
from rewards.extraction.surroundings import later_claims
from rewards.reading.numbers import read_number, same_number
from rewards.reading.numerals import is_integer_of, numeral
from rewards.reading.parse import Unparsed, parse
from rewards.reading.read import read
from rewards.reading.shapes import Expression, Items, Node, Unusable
from rewards.spelling.clean import Unreadable, clean, fingerprint
from rewards.spelling.restored import restored
from rewards.spelling.split import quoted_items
from rewards.types import Verdict

MAX_REMEMBERED_CHARS = 1_000
_BOXED_REFERENCE = re.compile(r"\\boxed\s*\{")
_AMBIGUOUS_COMMAS = re.compile(r"\d{1,3}(?:,[1-9]\d{2})+")
"""A group that begins with a zero is not an element of a list: 125,000 is not 125, 0."""

_BARE_LOG = re.compile(r"(?:\\|(?<![\\A-Za-z]))log(?![A-Za-z0-9]|\s*_|\s*[({]?\s*0(?![.\d]))")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the answer that was judged, and the name of the rule that decided."""

    verdict: Verdict
    extracted: str | None
    rule: str


def warm_up() -> None:
    """Fill the parser's tables before workers are forked: the first parses are a hundred times slower."""
    for reference in WARM_UP:
        same_answer("5", reference)
    same_answer(r"n \cdot (n-1)!", "n!")  # proofs make sympy import more modules
    same_answer("5", "9" * 1_500)


WARM_UP = (
    r"\sum_{n=0}^\infty 2^{-n}",  # loads numpy, which a confined worker could not do later
    r"\frac{1}{2}x^2 + 3\sqrt{5}\pi - y_1",
    r"(1, 2)\cup[3,\infty)",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix} + \begin{pmatrix}1&2\\3&5\end{pmatrix}",
    r"\sin 60^\circ + \ln 2 + e^{2} - \cos(2x)",
    r"\binom{4}{2} + 3! - |x-1|",
    r"y = 2x + 3",
    r"(a+5)(b+2) - 2(x+1)",
    r"\frac{11+9a}{20}",
    r"\frac{3\sqrt{3}}{4}",
    r"-\frac{35}{9}",
    r"6 - 5i",
    r"x^5 - x^4 + x^3 - x^2 + x - 1",
    r"\frac{-1+\sqrt{5}}{2}",
    r"\sqrt[3]{2}\cdot\log_2 3",
    r"\frac{\pi}{6} + \tan^{2}\theta",
    r"\lfloor x\rfloor + f(x)",
    r"(2x+1)^{3}(y-2)",
    r"x < 3",
)


def judge_completion(completion: str, reference: str, *, forms: tuple[str, ...], opened: str = "") -> Judgement:
    """The judgement of a whole completion. `opened` is the opening mark of a thought with which the prompt ended, if
    any: the completion then begins inside the thought."""
    found = extract(opened + completion, forms)
    if isinstance(found, Refused):
        if found.answer is None or found.rule == "empty_box":
            return Judgement(Verdict.NO_ANSWER, None, found.rule)
        if found.rivals and all(same_answer(rival, reference)[0] is Verdict.CORRECT for rival in found.rivals):
            return Judgement(Verdict.CORRECT, found.answer, "same_in_every_box")
        return Judgement(Verdict.INCORRECT, found.answer, found.rule)
    verdict, rule = same_answer(found.answer, reference, several=found.several)
    if found.alternative and same_answer(found.alternative, reference)[0] is not Verdict.CORRECT:
        return Judgement(Verdict.INCORRECT, found.answer, "alternatives")
    if verdict is Verdict.CORRECT and _belied(found, reference):
        return Judgement(Verdict.INCORRECT, found.answer, "contradicted_later")
    return Judgement(verdict, found.answer, rule)


def judge_reference(reference: str) -> Judgement:
    """Whether a reference grades correct against itself."""
    answer = own_answer(reference)
    verdict, rule = same_answer(answer, reference)
    return Judgement(verdict, answer, rule)


def _belied(found: Extracted, reference: str) -> bool:
    """Whether the text after the answer states a different answer."""
    claims = [*later_claims((found.answer, own_answer(reference)), found.tail), *filter(None, [found.closing])]
    return bool(claims) and same_answer(claims[-1], reference)[0] is Verdict.INCORRECT


def same_answer(answer: str, reference: str, *, several: bool = False) -> tuple[Verdict, str]:
    """Whether an answer agrees with a reference, and by which rule.

    Results for pairs of ordinary length are cached: a group of completions often gives the same few answers.
    """
    if len(answer) + len(reference) > MAX_REMEMBERED_CHARS:
        return _judge_pair(answer, reference, several)
    return _remembered(answer, reference, several)


@lru_cache(maxsize=16384)
def _remembered(answer: str, reference: str, several: bool) -> tuple[Verdict, str]:
    return _judge_pair(answer, reference, several)


def _judge_pair(answer: str, reference: str, several: bool) -> tuple[Verdict, str]:
    try:
        expected = clean(own_answer(reference))
    except Unreadable as error:
        return _long_numbers(reference, answer) or (Verdict.UNPARSEABLE, f"reference_{error}")
    if not expected or isinstance(read(expected), Unusable):
        return _unusable_reference(expected, answer)
    try:
        given = clean(answer)
    except Unreadable as error:
        if "forbidden" in str(error):
            return Verdict.INCORRECT, str(error)
        return _long_numbers(reference, answer) or (Verdict.UNPARSEABLE, str(error))
    if (outcome := _short_cut(expected, given)) is not None:
        return outcome
    try:
        if _equal_in_some_reading(expected, given, several=several):
            return Verdict.CORRECT, "compared"
    except Unparsed as error:
        return Verdict.UNPARSEABLE, f"unparsed: {error}"[:200]
    return _why_not(given)


def _long_numbers(reference: str, answer: str) -> tuple[Verdict, str] | None:
    """Compare plain numbers longer than the limits. One side may be a short expression, 2^{5000} or 10^{1000} - 1."""
    texts = [own_answer(reference), answer]
    values = [numeral(text) for text in texts]
    if values[0] is not None and values[1] is not None:
        same = values[0] == values[1]
    else:
        value, text = (values[0], texts[1]) if values[0] is not None else (values[1], texts[0])
        try:
            number = integer_of(clean(text)) if value is not None else None
        except (Unreadable, Unparsed):
            number = None
        if value is None or number is None:
            return None
        same = is_integer_of(value, number)
    return (Verdict.CORRECT if same else Verdict.INCORRECT), "long_numbers"


def own_answer(reference: str) -> str:
    r"""The answer in a reference that is itself a completion, the last line of one, or a list of spellings of one
    value: 5 for \boxed{5}, #### 5 or ['5', '5.0']."""
    reference = restored(reference)
    if spellings := quoted_items(reference):
        same = all(same_answer(spelling, spellings[0])[0] is Verdict.CORRECT for spelling in spellings)
        return spellings[0] if same else reference
    if _BOXED_REFERENCE.search(reference):
        found = extract(reference, ("boxed",))
        if isinstance(found, Extracted):
            return found.answer
    return reference.rsplit("####", 1)[-1]


def _unusable_reference(expected: str, answer: str) -> tuple[Verdict, str]:
    """The verdict for an unusable reference: an empty or meaningless one accepts no answer; one that is definite but
    unreadable accepts an equal text."""
    if expected:
        node = read(expected)
        try:
            same = fingerprint(clean(answer)) == fingerprint(expected)
        except Unreadable:
            same = False
        if same and isinstance(node, Unusable) and node.rule not in {"placeholder"}:
            return Verdict.CORRECT, "same_text"
    return Verdict.UNPARSEABLE, "unusable_reference"


def _short_cut(expected: str, given: str) -> tuple[Verdict, str] | None:
    """Decide equal texts and plain numbers, which are most of the work; None for anything else."""
    if fingerprint(expected) == fingerprint(given):
        return Verdict.CORRECT, "same_text"
    number, other = read_number(expected), read_number(given)
    if number is not None and other is not None:
        same = same_number(number, other)
        return (Verdict.CORRECT if same else Verdict.INCORRECT), "numbers"
    return None


def _equal_in_some_reading(expected: str, given: str, *, several: bool) -> bool:
    """Whether the two are equal in any reading. 1,234 is a number, unless the other side is a list: then it is a list
    too, and +- means both signs. Beside \\ln on the other side, a logarithm without a base is natural."""
    if fingerprint(expected) == fingerprint(given):
        return True
    reference, answer = read(expected), read(given)
    if equal(reference, answer):
        return True
    if several and isinstance(answer, Items) and not isinstance(reference, Items):
        return all(equal(reference, element) for element in answer.elements)
    for text, node, other in ((expected, reference, answer), (given, answer, reference)):
        if "+-" in text and isinstance(other, Items):
            signs = read(text.replace("+-", r"\pm "))
            return equal(signs, other) if node is reference else equal(other, signs)
        if isinstance(other, Items) and not isinstance(node, Items) and _AMBIGUOUS_COMMAS.fullmatch(text):
            as_list: Node = read(text, thousands=False)
            return equal(as_list, other) if node is reference else equal(other, as_list)
    for natural, bare in ((expected, given), (given, expected)):
        if r"\ln" in natural and "log" not in natural and r"\ln" not in bare and _BARE_LOG.search(bare):
            texts = (_BARE_LOG.sub(r"\\ln", text) for text in (expected, given))
            return _equal_in_some_reading(*texts, several=several)
    return False


def _why_not(given: str) -> tuple[Verdict, str]:
    """The rule behind a rejection. An expression that the parser rejects was not judged, so it is unparseable."""
    node = read(given)
    if isinstance(node, Unusable):
        return Verdict.INCORRECT, node.rule
    if isinstance(node, Expression):
        try:
            parse(node.latex)
        except Unparsed as error:
            return Verdict.UNPARSEABLE, f"unparsed: {error}"[:200]
    return Verdict.INCORRECT, "compared"
