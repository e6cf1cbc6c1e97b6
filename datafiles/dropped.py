"""Rows that are not used → how many for each reason, with one of them to look up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that were not used, and the columns that were not read."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """Reason → the place of the first row that was dropped for it."""
    unread: list[str] = field(default_factory=list)

    def drop(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, where)

    def add(self, other: Dropped) -> None:
        """Count the rows that were dropped from another source too."""
        self.counts.update(other.counts)
        for reason, where in other.examples.items():
            self.examples.setdefault(reason, where)

    def lines(self, what: str = "") -> list[str]:
        """A line for each reason, the most frequent first; `what` follows the number."""
        return [
            f"dropped {count:,}{what}: {reason} (for one, {self.examples[reason]})"
            for reason, count in self.counts.most_common()
        ]
