"""Problem texts → repeats: equal after normalisation, or sharing a run of 13 words.

Thirteen words is the usual length for contamination checks: long enough that unrelated problems do not
share it, short enough that a reworded ending does not hide a repeat. Numbers are words like others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

NGRAM = 13
COMMON_LIMIT = 50
"""A run shared by more problems than this is a formula of the source ("Express your answer as …")."""

_WORD = re.compile(r"\\?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two problems that repeat each other, by id, with how it was found."""

    left: str
    right: str
    kind: str
    """`exact` or `13-gram`."""


def words(text: str) -> list[str]:
    """Lower-case words and numbers; punctuation, spacing and LaTeX brackets do not count."""
    return _WORD.findall(text.lower().replace("\\left", "").replace("\\right", ""))


def _runs(tokens: list[str]) -> set[int]:
    return {hash(tuple(tokens[i : i + NGRAM])) for i in range(len(tokens) - NGRAM + 1)}


class Index:
    """The problems of one or more files, ready to be searched."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._grams: dict[int, list[str]] = defaultdict(list)

    def add(self, identity: str, text: str) -> None:
        tokens = words(text)
        self._exact[tuple(tokens)].append(identity)
        for run in _runs(tokens):
            self._grams[run].append(identity)

    def find(self, identity: str, text: str) -> list[Overlap]:
        """Every indexed problem that repeats this one."""
        tokens = words(text)
        exact = self._exact.get(tuple(tokens), [])
        found = dict.fromkeys(exact, "exact")
        for run in _runs(tokens):
            holders = self._grams.get(run, [])
            if len(holders) <= COMMON_LIMIT:
                for other in holders:
                    found.setdefault(other, f"{NGRAM}-gram")
        return [Overlap(identity, other, kind) for other, kind in found.items() if other != identity]


def within(problems: Iterable[tuple[str, str]]) -> list[Overlap]:
    """Repeats inside one file, each pair once, the later problem first."""
    index = Index()
    found: list[Overlap] = []
    for identity, text in problems:
        found += index.find(identity, text)
        index.add(identity, text)
    return found
