"""Graded samples → votes: how many answers to a problem state the same, in the grader's own judgement.

The verdicts say which answers equal the reference. The others are grouped by text first. Then each text is compared
with a representative of every class found so far, for all problems at once: round i compares each problem's i-th text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evals.scoring.estimators import Votes
from evals.scoring.outcomes import Outcome
from rewards import Grader, Verdict

# Only this many different wrong answers to a problem are compared (496 comparisons); rarer ones stay separate classes.
MOST_COMPARED = 32
AS_COMPLETION = {"boxed": "\\boxed{%s}", "answer_is": "The answer is %s", "gsm8k_hashes": "#### %s"}
Class = list[tuple[str, int]]
"""Equivalent texts with their counts; the first represents the class."""


def count_votes(outcomes: Sequence[Outcome], grader: Grader) -> list[Votes]:
    """The votes on each problem. A sample without an answer casts no vote."""
    texts = [
        Counter(s.extracted for s in outcome.samples if s.extracted is not None and not s.correct).most_common()
        for outcome in outcomes
    ]
    classes = classes_of(texts, grader)
    votes = []
    for outcome, found in zip(outcomes, classes, strict=True):
        right = sum(sample.correct for sample in outcome.samples)
        wrong = tuple(sorted((sum(count for _, count in one) for one in found), reverse=True))
        votes.append(Votes(right=right, wrong=wrong, silent=len(outcome.samples) - right - sum(wrong)))
    return votes


def classes_of(texts: Sequence[Sequence[tuple[str, int]]], grader: Grader) -> list[list[Class]]:
    """Classes of equivalent texts for each problem. `texts` has each problem's distinct texts, most frequent first."""
    classes: list[list[Class]] = [[] for _ in texts]
    for turn in range(max((len(row) for row in texts), default=0)):
        asked = [(index, row[turn]) for index, row in enumerate(texts) if turn < len(row)]
        pairs = [
            (index, number)
            for index, _ in asked
            for number in range(len(classes[index]) if turn < MOST_COMPARED else 0)
        ]
        new = dict(asked)
        same = _first_equal(pairs, [(new[i][0], classes[i][number][0][0]) for i, number in pairs], grader)
        for index, text in asked:
            if index in same:
                classes[index][same[index]].append(text)
            else:
                classes[index].append([text])
    return classes


def _first_equal(pairs: Sequence[tuple[int, int]], texts: Sequence[tuple[str, str]], grader: Grader) -> dict[int, int]:
    """Problem → the first class whose representative is equal to its text."""
    wrapped = AS_COMPLETION[grader.config.answer_forms[0]]
    results = grader.grade([(wrapped % text, representative) for text, representative in texts])
    found: dict[int, int] = {}
    for (index, number), result in zip(pairs, results, strict=True):
        if result.verdict is Verdict.CORRECT:
            found.setdefault(index, number)
    return found
