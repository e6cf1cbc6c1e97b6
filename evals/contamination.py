"""Training problems and suites → how many of those repeat one of these, by the rules of rewards/overlap.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewards.overlap import NGRAM, Index, between
from rollout.types import Problem

SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """What a training set shares with one suite."""

    suite: str
    training: int
    """Problems of the training set."""
    exact: int
    """Training problems that are a suite's problem word for word."""
    ngram: int
    """Further ones that share a run of 13 words with one."""
    touched: int
    """Problems of the suite that any of them repeats."""
    examples: tuple[tuple[str, str], ...]
    """Some pairs of training id and suite id."""

    def __bool__(self) -> bool:
        return self.exact + self.ngram > 0

    def describe(self) -> str:
        """The finding in a sentence for people."""
        pairs = ", ".join(f"{train} = {suite}" for train, suite in self.examples)
        return (
            f"{self.exact + self.ngram:,} of {self.training:,} training problems overlap {self.suite} "
            f"({self.exact:,} word for word, {self.ngram:,} by {NGRAM} words in a row; they touch {self.touched:,} of "
            f"its problems): {pairs}"
        )


def contamination(training: Sequence[Problem], suites: Mapping[str, Iterable[Problem]]) -> list[Contamination]:
    """What a training set shares with each suite.

    The small suites are indexed and the training set only passes by, so that a hundred thousand problems take seconds
    and no memory. A run of words counts as a formula by how many training problems hold it; those are all among the
    hits of the first pass, so that counting there is counting everywhere.
    """
    # Ids of suites are marked: a training file that is the suite's own file bears the same ones.
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
