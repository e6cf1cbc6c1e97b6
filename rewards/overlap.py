"""Problem texts → repeats: equal after normalization, or sharing a run of 13 words.

Thirteen words is the usual length in contamination checks: long enough that unrelated problems do not
share a run, short enough that a reworded ending does not hide a repeat. Numbers count as words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

NGRAM = 13
COMMON_LIMIT = 5
"""A run shared by more problems than this is a formula ("where m and n are relatively prime …"), not a repeat."""

_WORD = re.compile(r"\\?[a-z]+|\d+")
Problems = Sequence[tuple[str, str]]
"""Pairs of id and text."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """The ids of two problems that repeat each other, and how this was found."""

    left: str
    right: str
    kind: str
    """`exact` or `13-gram`."""


def words(text: str) -> list[str]:
    """The text's words, in lower case, and numbers; punctuation, whitespace and LaTeX brackets are dropped."""
    return _WORD.findall(text.lower().replace("\\left", "").replace("\\right", ""))


def _runs(tokens: list[str]) -> set[int]:
    return {hash(tuple(tokens[i : i + NGRAM])) for i in range(len(tokens) - NGRAM + 1)}


def formulas(*files: Problems) -> set[int]:
    """The runs that more than COMMON_LIMIT problems of one file share."""
    common: set[int] = set()
    for problems in files:
        counts = Counter(run for _, text in problems for run in _runs(words(text)))
        common |= {run for run, count in counts.items() if count > COMMON_LIMIT}
    return common


class Index:
    """An index of problems to search for repeats. Runs in `ignored` are no evidence of one."""

    def __init__(self, ignored: set[int]) -> None:
        self._ignored = ignored
        self._exact: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._grams: dict[int, list[str]] = defaultdict(list)

    def add(self, identity: str, text: str) -> None:
        tokens = words(text)
        self._exact[tuple(tokens)].append(identity)
        for run in _runs(tokens) - self._ignored:
            self._grams[run].append(identity)

    def find(self, identity: str, text: str) -> list[Overlap]:
        """Every indexed problem that repeats this one."""
        tokens = words(text)
        found = dict.fromkeys(self._exact.get(tuple(tokens), []), "exact")
        for run in _runs(tokens) - self._ignored:
            for other in self._grams.get(run, []):
                found.setdefault(other, f"{NGRAM}-gram")
        return [Overlap(identity, other, kind) for other, kind in found.items() if other != identity]


def within(problems: Problems) -> list[Overlap]:
    """Repeats inside one file, each pair once, the later problem first."""
    index = Index(formulas(problems))
    found: list[Overlap] = []
    for identity, text in problems:
        found += index.find(identity, text)
        index.add(identity, text)
    return found


def between(problems: Problems, others: Problems) -> list[Overlap]:
    """Problems that are also in the other file."""
    index = Index(formulas(problems, others))
    for identity, text in others:
        index.add(identity, text)
    return [pair for identity, text in problems for pair in index.find(identity, text)]
