"""Answers with more than their value: a side condition, or a rounded value next to the exact one."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.equality.rule import Equal
from rewards.equality.values import value_of
from rewards.reading.phrases import fold
from rewards.reading.read import read
from rewards.reading.shapes import Approximation, Bracketed, Conditioned, Exact, Items, Node, Quantity
from rewards.spelling.clean import fingerprint
from rewards.spelling.split import without_text

CONSISTENT = Fraction(1, 50)
"""How far a rounded value may be from the exact one next to it, relative to the larger."""

_QUANTIFIED = re.compile(
    r"(?<![\\A-Za-z])(?P<before>[A-Za-z])\s*(?:\\in\b|(?:is|be)\b|\\text)"
    r"|\b(?:any|all|every|some)\s+(?:integers?|natural numbers?|real(?: number)?s?|constants?)\s*\}?\s*"
    r"(?P<after>[A-Za-z])(?![A-Za-z])"
)
_SOME_INTEGERS = re.compile(
    r"positive|negative|natural|counting|whole|even|odd|prime|zero|distinct|certain|fixed|given", re.I
)
"""Words that restrict a condition to some of the integers."""
_DOMAIN_CONDITION = re.compile(
    r"(?:\b(?:where|for|with|and|any|all|every|some|each|is|are|be|an|the|integers?|reals?|natural|whole|positive"
    r"|non[- ]?negative|complex|constants?|of integration|arbitrary|numbers?|values? of)\b"
    r"|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"
    r"|(?<![A-Za-z\\])[i-n]\s*(?:\\ge\s*[01]|>\s*0)(?![\d.])|_\{?\d\}?|\\in(?![a-z])|\\mathbb\s*\{[RZNQC]\}"
    r"|\\forall(?![a-z])|[\s,()-])+",
    re.IGNORECASE,
)
"""Words and signs that name the numbers a letter stands for; n ≥ 1 says where a sequence begins."""
_BEGIN = re.compile(r"\\ge\s*(?:(?P<least>0)|1)|>\s*0")
_BEGIN_IN_WORDS = re.compile(r"(?:positive|(?P<least>non[- ]?negative)) integer")


def conditioned(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """k\\pi, k ∈ Z: both value and condition must agree; if only one side has a condition, it must be a mere domain."""
    if not isinstance(reference, Conditioned) and not isinstance(answer, Conditioned):
        return None
    if isinstance(reference, Conditioned) and isinstance(answer, Conditioned):
        if not _same_condition(reference.condition, answer.condition):
            return False
        return equal(reference.body, answer.body) or _equal_renamed(reference, answer, equal)
    lone = reference if isinstance(reference, Conditioned) else answer
    assert isinstance(lone, Conditioned)
    if not _is_mere_domain(lone.condition):
        return False
    bodies = [node.body if isinstance(node, Conditioned) else node for node in (reference, answer)]
    return equal(bodies[0], bodies[1])


def _same_condition(one: str, other: str) -> bool:
    """Whether two conditions agree as text, or both only name the same numbers."""
    if fingerprint(fold(one)) == fingerprint(fold(other)):
        return True
    return _is_mere_domain(one) and _is_mere_domain(other) and _domain_names(one) == _domain_names(other)


def _equal_renamed(reference: Conditioned, answer: Conditioned, equal: Equal) -> bool:
    """n\\pi with n an integer is k\\pi with k an integer: the quantified letter may have another name."""
    one, other = (_QUANTIFIED.search(node.condition) for node in (reference, answer))
    if one is None or other is None:
        return False
    name, old = (match.group("before") or match.group("after") for match in (one, other))
    if name == old:
        return False
    letter = r"(?<![\\A-Za-z]){}(?![A-Za-z])"
    if re.search(letter.format(name), answer.text):
        return False
    renamed = re.sub(letter.format(old), name, answer.text)
    return renamed != answer.text and equal(reference.body, read(renamed))


def _is_mere_domain(condition: str) -> bool:
    r"""Whether a condition does not restrict the value: k \in \mathbb{Z}, "where n is an integer", "for some constant
    C"."""
    return _DOMAIN_CONDITION.fullmatch(without_text(condition)) is not None


def is_over_integers(condition: str) -> bool:
    """Whether a condition says only that something is any integer."""
    whole = _is_mere_domain(condition) and not _SOME_INTEGERS.search(condition)
    return whole and _domain_names(condition) == {"Z"}


def _domain_names(condition: str) -> set[str]:
    names = set(re.findall(r"\\mathbb\s*\{([RZNQC])\}", condition))
    if "natural" in condition:
        names.add("N")
    if "integer" in condition:
        names.add("Z")
    if "real" in condition or "constant" in condition:
        names.add("R")
    if begin := _BEGIN.search(condition) or _BEGIN_IN_WORDS.search(condition):
        names = {"from 0" if begin["least"] else "from 1"}
    elif "positive" in condition or "negative" in condition:
        names.add("half")
    return names


def approximation(reference: Node, answer: Node, equal: Equal) -> bool | None:
    """\\sqrt{2} ≈ 1.414: the exact side counts, and the rounded side must not contradict it."""
    if isinstance(answer, Approximation):
        return _is_consistent(answer) and (
            equal(reference, answer.exact) or (_is_decimal(reference) and equal(reference, answer.rounded))
        )
    if isinstance(reference, Approximation):
        return _is_consistent(reference) and (equal(reference.exact, answer) or equal(reference.rounded, answer))
    return None


def _is_consistent(approximation: Approximation) -> bool:
    """Whether the rounded side is within two per cent of the exact side, if both are numbers."""
    exact, rounded = _magnitude(approximation.exact), _magnitude(approximation.rounded)
    if exact is None or rounded is None:
        return not isinstance(approximation.rounded, Items | Bracketed)
    return abs(exact - rounded) <= CONSISTENT * max(abs(exact), abs(rounded))


def _magnitude(node: Node) -> Fraction | None:
    """The exact value of a node, ignoring its unit."""
    return _magnitude(node.value) if isinstance(node, Quantity) else value_of(node)


def _is_decimal(node: Node) -> bool:
    return isinstance(node, Exact) and node.number.digits > 0
