"""Two answers as read → equal or not. One small rule per pair of kinds; a pair without a rule is not equal.

The first argument is always the reference. Rules are symmetric, except those that say that the reference may
contain more than the answer needs to (a unit, a variable's name).
"""

from __future__ import annotations

from rewards.equality import cases, conditions, families, groups, measures, relations, values
from rewards.equality.rule import Rule
from rewards.reading.shapes import Node, Unusable


def equal(reference: Node, answer: Node) -> bool:
    """Whether an answer states the same as the reference. The first rule that applies decides."""
    if isinstance(reference, Unusable) or isinstance(answer, Unusable):
        return False
    for rule in _RULES:
        outcome = rule(reference, answer, equal)
        if outcome is not None:
            return outcome
    return False


_RULES: tuple[Rule, ...] = (
    families.families,
    conditions.conditioned,
    conditions.approximation,
    values.numbers,
    cases.pieces,
    groups.named_points,
    values.choices,
    values.choices_in_a_row,
    relations.congruences,
    relations.relational,
    groups.items,
    measures.quantities,
    measures.moments,
    values.texts,
    measures.ratios,
    measures.bases,
    groups.bracketed,
    groups.matrices,
    groups.sets,
    values.expressions,
)
