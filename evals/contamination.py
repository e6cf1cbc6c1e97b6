"""Training problems and suites → how many training problems repeat a suite's, by the rules of rewards/overlap.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewards.overlap import NGRAM, Index, between
from rollout.types import Problem

SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """The overlap of a training set with one suite."""

    suite: str
    training: int
    """Number of problems in the training set."""
    exact: int
    """Training problems that equal one of the suite word for word."""
    ngram: int
    """Further training problems that share a run of 13 words with one of the suite."""
    touched: int
    """Problems of the suite that any training problem repeats."""
    examples: tuple[tuple[str, str], ...]
    """A few pairs of a training problem's id and a suite problem's id."""

    def __bool__(self) -> bool:
        return self.exact + self.ngram > 0

    def describe(self) -> str:
        """The finding as a sentence."""
        pairs = ", ".join(f"{train} = {suite}" for train, suite in self.examples)
        return (
            f"{self.exact + self.ngram:,} of {self.training:,} training problems overlap {self.suite} "
            f"({self.exact:,} word for word, {self.ngram:,} by {NGRAM} words in a row; they touch {self.touched:,} of "
            f"its problems): {pairs}"
        )


def contamination(training: Sequence[Problem], suites: Mapping[str, Iterable[Problem]]) -> list[Contamination]:
    """The overlap of a training set with each suite.

    Only the small suites are indexed, and the training set is read past the index, so a hundred thousand problems take
    seconds and no memory. Whether a run of words is a formula depends on how many training problems contain it. All
    of these are among the hits of the first pass, so counting in the hits is the same as counting in the whole set.
    """
    # Prefix the suites' ids: if the training file is the suite's own file, its ids are the same.
    texts = {
        name: [(f"{name}:{problem.id}", problem.text) for problem in problems] for name, problems in suites.items()
    }
    index = Index(ignored=set())
    for problems in texts.values():
        for identity, text in problems:
            index.add(identity, text)
    hits = [(problem.id, problem.text) for problem in training if index.find(problem.id, problem.text)]
    return [_shared(name, len(training), hits, problems) for name, problems in texts.items()]


def _shared(
    name: str, training: int, hits: Sequence[tuple[str, str]], suite: Sequence[tuple[str, str]]
) -> Contamination:
    pairs = sorted(between(hits, suite), key=lambda pair: pair.kind != "exact")
    exact = {pair.left for pair in pairs if pair.kind == "exact"}
    return Contamination(
        suite=name,
        training=training,
        exact=len(exact),
        ngram=len({pair.left for pair in pairs} - exact),
        touched=len({pair.right for pair in pairs}),
        examples=tuple((pair.left, pair.right) for pair in pairs[:SHOWN]),
    )
