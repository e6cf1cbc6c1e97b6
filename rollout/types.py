"""The records from a problem to its completions: one frozen class per hop, never filled in later."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
BASE = "base"
"""Takes the place of an adapter's key if none is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One verifiable problem.

    Example: `Problem(id="gsm8k-test-0", text="Natalia sold clips …", answer="72", level="", subject="")`
    """

    id: str
    text: str
    """The question, before any template."""
    answer: str
    """The reference answer, as written in the source."""
    level: str = ""
    subject: str = ""
    system: str = ""
    """The system turn, if the source consists of chats."""
    continues: bool = False
    """Whether earlier turns of its chat precede it, which the model does not see."""
    part: int = 0
    """Index of its source in `data.mix`."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The source's other columns, for a user's reward function."""
    entry: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Generated tasks only: `task`, `settings`, and the library's `entry`, which the task's own scorer needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the policy sees it."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """A published version, an adapter or a whole model, for a sampler to load. Names are never reused within a run.

    Example: `AdapterRef(name="policy", version=3, path=Path("runs/x/adapters/v000003"), sha256="9f…", rank=1)`
    """

    name: str
    version: int
    path: Path
    sha256: str
    """Digest of the manifest, which holds the digest of every file, or of the weights if there is no manifest."""
    rank: int
    """The adapter's rank; 0 for a whole model."""

    @property
    def key(self) -> str:
        """The name under which engines load this version, unique within a run."""
        return f"{self.name}-v{self.version:06d}"


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of a completion that were sampled in one go."""

    adapter: str
    """`AdapterRef.key` of the version that produced them."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled completion."""

    text: str
    token_ids: tuple[int, ...]
    """[T] sampled tokens, including the end-of-sequence token if it was sampled."""
    logprobs: tuple[float, ...]
    """[T] nats: the sampler's log-probability of each sampled token, after temperature and truncation."""
    finish_reason: FinishReason
    adapter: str
    """`AdapterRef.key` of the version that produced it, of the last one if several did; `base` if none was loaded."""
    earlier: tuple[Segment, ...] = ()
    """The segments before the tokens of `adapter`, in order; empty if all was sampled in one go."""

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All its tokens as segments, each with the version that produced it."""
        last = len(self.token_ids) - sum(segment.tokens for segment in self.earlier)
        return (*self.earlier, Segment(adapter=self.adapter, tokens=last))


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The completions of one prompt, which share a baseline."""

    prompt: Prompt
    completions: tuple[Completion, ...]


def by_group(groups: Sequence[RolloutGroup], items: Iterable[T]) -> list[tuple[T, ...]]:
    """One item per completion of all groups, in order → one tuple of items per group."""
    found = iter(items)
    return [tuple(itertools.islice(found, len(group.completions))) for group in groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How likely given tokens are after a context."""

    logprobs: tuple[float, ...]
    """[T] nats, at temperature 1 and top_p 1."""
    greedy: tuple[bool, ...]
    """[T] whether the token is the most likely one at its position."""
