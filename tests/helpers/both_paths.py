"""Answers → those on which the judge's fast path changes the verdict."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from rewards import Verdict, judge
from rewards.judge import same_answer


def changed_by_short_cuts(pairs: Iterable[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The (answer, reference) pairs whose verdict differs when everything is parsed and compared."""
    told = [(pair, same_answer(*pair)[0]) for pair in pairs]
    monkeypatch.setattr(judge, "_short_cut", lambda expected, given: None)
    judge._remembered.cache_clear()
    changed = [pair for pair, quick in told if (quick is Verdict.CORRECT) != (same_answer(*pair)[0] is Verdict.CORRECT)]
    judge._remembered.cache_clear()
    return changed
