"""metrics.jsonl → the published version that `adapters/best` names."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def best_version(lines: Sequence[dict[str, float]], suite: str, there: Collection[int]) -> int | None:
    """The first version with the highest score on a suite, among those that still exist; None if none was evaluated.

    Computed from the metrics each time, because a resumed run drops later lines, and their scores must not count.
    """
    key = f"eval/{suite}/avg"
    scored = [line for line in lines if key in line and line["adapter/version"] in there]
    return int(max(scored, key=lambda line: line[key])["adapter/version"]) if scored else None
