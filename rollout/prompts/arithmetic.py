"""Nothing → problem: sums and differences of small numbers, the task of the embedded example.

A problem is an expression such as `17-4+9=?`. It can be answered directly (`\\boxed{22}`) or step by step (`17-4=13`,
`13+9=22`, `\\boxed{22}`); the difference in accuracy is what reinforcement learning exploits. The level is the number
of terms.
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
# After this many draws per problem, the space of small expressions is considered exhausted.
DRAWS_PER_PROBLEM = 50


def split_of(text: str) -> Split:
    """The split that a problem belongs to, by its text without regard to spacing."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    return "held_out" if digest[0] < 256 * HELD_OUT_SHARE else "train"


@dataclass(frozen=True, slots=True)
class SignedSum:
    """Signed terms, of which the first is positive: `SignedSum((17, -4, 9))` is 17-4+9."""

    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:])

    @property
    def value(self) -> int:
        return sum(self.terms)

    @property
    def split(self) -> Split:
        """The split is a function of the expression, so that no choice of seeds or sizes can mix the two splits."""
        return split_of(self.text)

    def direct(self) -> str:
        """The answer without intermediate steps."""
        return f"\\boxed{{{self.value}}}"

    def worked(self) -> str:
        """The answer after one line per operation."""
        lines, total = [], self.terms[0]
        for term in self.terms[1:]:
            lines.append(f"{total}{term:+d}={total + term}")
            total += term
        return "\n".join([*lines, self.direct()])


def expressions(split: Split, seed: int, terms: Sequence[int], largest: int) -> Iterator[SignedSum]:
    """An endless stream of the split's expressions, determined by the arguments."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        first = rng.randint(1, largest)
        rest = (rng.choice((-1, 1)) * rng.randint(1, largest) for _ in range(rng.choice(terms) - 1))
        expression = SignedSum((first, *rest))
        if expression.split == split:
            yield expression


def arithmetic_problems(config: ArithmeticConfig, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of the split, or fewer if no more exist."""
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
