"""The records that travel from a problem to its completions: one frozen class a hop, none filled in later."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
BASE = "base"
"""Stands for the key of an adapter where none is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One verifiable problem.

    Example: `Problem(id="gsm8k-test-0", text="Natalia sold clips …", answer="72", level="", subject="")`
    """

    id: str
    text: str
    """What the model is asked, before any template."""
    answer: str
    """The reference answer, as the source writes it."""
    level: str = ""
    subject: str = ""
    system: str = ""
    """The system turn, where the source asks in chats."""
    continues: bool = False
    """Whether other turns of its chat come before it, which the model is not shown."""
    part: int = 0
    """Which source of `data.mix` it is from."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The source's other columns, for a reward function of the user's."""
    entry: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """From a generated task: `task`, `settings`, and the library's `entry`, by which the task's own scorer grades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the policy sees it."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """A published version, an adapter or a whole model: what a sampler is told to load. Names are never reused within
    a run.

    Example: `AdapterRef(name="policy", version=3, path=Path("runs/x/adapters/v000003"), sha256="9f…", rank=1)`
    """

    name: str
    version: int
    path: Path
    sha256: str
    """Digest of the manifest, which holds the digest of every file; of the weights where there is no manifest."""
    rank: int
    """The adapter's rank; 0 for a whole model."""

    @property
    def key(self) -> str:
        """The name under which engines load this version: unique for the life of the run."""
        return f"{self.name}-v{self.version:06d}"


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of a completion that were sampled at once."""

    adapter: str
    """`AdapterRef.key` of the version that produced them."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion."""

    text: str
    token_ids: tuple[int, ...]
    """[T] sampled tokens, the end-of-sequence token included when it was sampled."""
    logprobs: tuple[float, ...]
    """[T] nats: the sampler's log-probability of each sampled token, after temperature and truncation."""
    finish_reason: FinishReason
    adapter: str
    """`AdapterRef.key` of the version that produced it, of several the last one; `base` when none was loaded."""
    earlier: tuple[Segment, ...] = ()
    """What came before the tokens of `adapter`, in order; nothing where it was sampled at once."""

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All its tokens, by what produced them."""
        last = len(self.token_ids) - sum(segment.tokens for segment in self.earlier)
        return (*self.earlier, Segment(adapter=self.adapter, tokens=last))


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The completions of one prompt: a group shares a baseline."""

    prompt: Prompt
    completions: tuple[Completion, ...]


def by_group(groups: Sequence[RolloutGroup], items: Iterable[T]) -> list[tuple[T, ...]]:
    """What was found of each completion of all groups, in order → what was found of each group's."""
    found = iter(items)
    return [tuple(itertools.islice(found, len(group.completions))) for group in groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How likely given tokens are after a context."""

    logprobs: tuple[float, ...]
    """[T] nats, at temperature 1 and top_p 1."""
    greedy: tuple[bool, ...]
    """[T] whether the token is the likeliest where it stands."""
