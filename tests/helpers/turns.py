"""Turns of a conversation, and the tokens of it that are learned."""

from __future__ import annotations

import itertools

from rl_engine.sft.examples import IGNORED, Example


def said(*contents: str) -> tuple[dict[str, str], ...]:
    roles = itertools.cycle(("user", "assistant"))
    return tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=False))


def learned(example: Example) -> list[list[int]]:
    """The contiguous runs of learned tokens."""
    pairs = zip(example.input_ids.tolist(), example.labels.tolist(), strict=True)
    groups = itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [[token for token, _ in group] for is_learned, group in groups if is_learned]
