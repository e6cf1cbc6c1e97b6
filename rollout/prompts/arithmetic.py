"""Nothing → problem: sums and differences of small numbers, the task of the embedded example.

A problem is an expression such as `17-4+9=?`. There are two ways to answer it, and the gap between them is
what reinforcement learning finds: at once (`\\boxed{22}`), or step by step (`17-4=13`, `13+9=22`,
`\\boxed{22}`). The level is the number of terms.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rollout.config import ArithmeticConfig
from rollout.types import Problem

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 0.1
# When this many draws a problem have been made, the space of small expressions is taken to be used up.
DRAWS_PER_PROBLEM = 50


@dataclass(frozen=True, slots=True)
class SignedSum:
    """Signed terms, the first positive: `SignedSum((17, -4, 9))` is 17-4+9."""

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


def expressions(split: Split, seed: int, terms: Sequence[int], largest: int) -> Iterator[SignedSum]:
    """An endless stream of the split's expressions, the same for the same arguments."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        first = rng.randint(1, largest)
        rest = (rng.choice((-1, 1)) * rng.randint(1, largest) for _ in range(rng.choice(terms) - 1))
        expression = SignedSum((first, *rest))
        if expression.split == split:
            yield expression


def arithmetic_problems(config: ArithmeticConfig, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` different problems of the split, fewer when no more exist."""
    found: dict[str, Problem] = {}
    for drawn, expression in enumerate(expressions(split, seed, config.terms, config.largest)):
        if len(found) == count or drawn > DRAWS_PER_PROBLEM * count:
            break
        found.setdefault(
            expression.text,
            Problem(
                id=f"arithmetic-{expression.text}",
                text=config.wording.replace("{expression}", expression.text),
                answer=str(expression.value),
                level=str(len(expression.terms)),
            ),
        )
    return list(found.values())
