"""metrics.jsonl → the published version that `adapters/best` names."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def best_version(lines: Sequence[dict[str, float]], suite: str, there: Collection[int]) -> int | None:
    """The first version with the highest score on a suite, among those that are still there; None before any.

    Read anew from the metrics each time: a resumed run, whose later lines are cut off, knows no more than they do.
    """
    key = f"eval/{suite}/avg"
    scored = [line for line in lines if key in line and line["adapter/version"] in there]
    return int(max(scored, key=lambda line: line[key])["adapter/version"]) if scored else None
