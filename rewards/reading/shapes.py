"""The kinds of answers: one frozen class for each. `reading.read` creates them, `equality.compare` compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rewards.reading.numbers import Number


@dataclass(frozen=True, slots=True)
class Exact:
    """A number that is read without a parser: 42, 1,234, 3 1/2, 1.2 \\times 10^{-5}."""

    number: Number


@dataclass(frozen=True, slots=True)
class Expression:
    """Mathematics left to math-verify: 2\\sqrt{3}, x^2+1, \\ln 6."""

    latex: str


@dataclass(frozen=True, slots=True)
class Words:
    """A text answer, folded to lower case without articles and punctuation: ellipse, yes, tuesday."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit, a currency, a percent or a degree sign."""

    value: Node
    unit: str
    """The canonical name from `reading.units`, or the folded words if the unit is unknown."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A lettered choice, with the value after the letter or None: (C), C. 42"""

    letter: str
    content: Node | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of day or a date in canonical form: 14:30, 20 june."""

    text: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two or more parts: 2:3. `clock` marks a:bb, which may be a time and so is never reduced."""

    parts: tuple[Node, ...]
    clock: bool


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with an explicit base: 1011_2."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Items:
    """Several values without order: a `list` is bare or joined by and/or, a `set` is in braces."""

    elements: tuple[Node, ...]
    kind: Literal["list", "set"] = "list"
    joined_by: Literal[",", ";", "and", "or"] = ","


@dataclass(frozen=True, slots=True)
class Bracketed:
    """Ordered values in round or square brackets: a point, a vector or an interval, depending on the context."""

    opening: str
    closing: str
    elements: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Values in rows, with any brackets."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Domain:
    r"""A named set: \mathbb{R}."""

    name: str


@dataclass(frozen=True, slots=True)
class Combination:
    r"""Sets joined by \cup, \cap or \setminus."""

    operator: Literal["cup", "cap", "setminus"]
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain a = b < c …: `sides` has one more entry than `operators`.

    Sides are kept as written: most questions about a side are about its text (does it name a value, is it the
    unknown, is it closed), and `reading.read` gives its kind where it is needed.
    """

    sides: tuple[str, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    r"""A piecewise function, \begin{cases} x & x > 0 \\ 0 & \text{otherwise} \end{cases}: values and conditions."""

    rows: tuple[tuple[Node, str], ...]
    """(value, condition) per row. Conditions are kept as written, without "if" and "for"; "otherwise" is empty."""


@dataclass(frozen=True, slots=True)
class Conditioned:
    r"""A value with a side condition: k\pi, k \in \mathbb{Z}."""

    body: Node
    condition: str
    text: str
    """The body as written."""


@dataclass(frozen=True, slots=True)
class Approximation:
    """An exact value, and its rounded value next to it."""

    exact: Node
    rounded: Node


@dataclass(frozen=True, slots=True)
class Unusable:
    """Text that is not a single answer: it hedges, negates, or is a placeholder."""

    rule: str
    source: str = field(default="")


Node = (
    Exact | Expression | Words | Quantity | Choice | Moment | Ratio | Based | Items | Bracketed | Matrix | Domain
    | Combination | Relation | Pieces | Conditioned | Approximation | Unusable
)  # fmt: skip
