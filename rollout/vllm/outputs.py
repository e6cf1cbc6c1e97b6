"""vLLM's outputs → the records of `rollout.types`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rollout.engine import NanError
from rollout.types import Completion, TokenScores


def scores(flat: Any, continuation: Sequence[int], weights: str) -> TokenScores:
    """The scores of `continuation` from vLLM's flat list, which has two entries per position: the given token and the
    most likely one."""
    logprobs, token_ids = (values[-2 * len(continuation) :] for values in (flat.logprobs, flat.token_ids))
    assert token_ids[::2] == list(continuation)
    _refuse_nan(logprobs, weights)
    return TokenScores(
        logprobs=tuple(logprobs[::2]),
        greedy=tuple(here == best for here, best in zip(token_ids[::2], token_ids[1::2], strict=True)),
    )


def completion(output: Any, adapter: str, text: str) -> Completion:
    """A finished output of vLLM, sampled with `adapter`, of which `text` is the decoded text."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a completion with {output.finish_reason!r}")
    _refuse_nan(output.logprobs.logprobs, adapter)
    return Completion(
        text=text,
        token_ids=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs),
        finish_reason=output.finish_reason,
        adapter=adapter,
    )


def _refuse_nan(logprobs: Sequence[float], weights: str) -> None:
    """vLLM samples token 0 where the logits are NaN, and goes on: the model would only seem to know nothing."""
    if any(map(math.isnan, logprobs)):
        raise NanError(
            f"the sampler computed NaN with {weights}: its weights or the base model contain NaN or infinity, or are "
            "too large for the precision they run in"
        )
