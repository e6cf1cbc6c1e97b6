"""Nothing → problem: sums and differences of small numbers, the task of the embedded example.

A problem is an expression such as `17-4+9=?`. There are two ways to answer it, and the gap between them is
what reinforcement learning finds: at once (`\\boxed{22}`), or step by step (`17-4=13`, `13+9=22`,
`\\boxed{22}`). The level is the number of terms.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rollout.types import Problem

Split = Literal["train", "held_out"]

LEVELS = (3, 4, 5, 6)
LARGEST_TERM = 50
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Expression:
    """Signed terms, the first positive: `Expression((17, -4, 9))` is 17-4+9."""

    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:])

    @property
    def value(self) -> int:
        return sum(self.terms)

    @property
    def split(self) -> Split:
        """The split is a function of the expression, so that no choice of seeds or sizes can mix the two."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return "held_out" if digest[0] < 256 * HELD_OUT_SHARE else "train"

    def direct(self) -> str:
        """The answer at once."""
        return f"\\boxed{{{self.value}}}"

    def worked(self) -> str:
        """The answer after one line for each operation."""
        lines, total = [], self.terms[0]
        for term in self.terms[1:]:
            lines.append(f"{total}{term:+d}={total + term}")
            total += term
        return "\n".join([*lines, self.direct()])


def expressions(split: Split, seed: int) -> Iterator[Expression]:
    """An endless stream of the split's expressions, the same for the same seed."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        size = rng.choice(LEVELS)
        first = rng.randint(1, LARGEST_TERM)
        rest = (rng.choice((-1, 1)) * rng.randint(1, LARGEST_TERM) for _ in range(size - 1))
        expression = Expression((first, *rest))
        if expression.split == split:
            yield expression


def problems(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` different problems of the split."""
    found: dict[str, Problem] = {}
    for expression in expressions(split, seed):
        if len(found) == count:
            break
        found.setdefault(
            expression.text,
            Problem(
                id=f"arithmetic-{expression.text}",
                text=f"{expression.text}=?",
                answer=str(expression.value),
                level=str(len(expression.terms)),
            ),
        )
    return list(found.values())
