"""An unfinished completion and what was sampled to go on with it → one completion, as if sampled at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from rollout.types import Completion

Decode = Callable[[Sequence[int]], str]


def is_unfinished(completion: Completion, max_tokens: int) -> bool:
    """Whether a smaller limit than `max_tokens` ended it."""
    return completion.finish_reason == "length" and len(completion.token_ids) < max_tokens


def goes_on(before: Completion, after: Completion, max_tokens: int) -> bool:
    """Whether `after` is `before` gone on with, or the same where that was finished."""
    if not is_unfinished(before, max_tokens):
        return after == before
    count = len(before.token_ids)
    return after.earlier == before.segments and (after.token_ids[:count], after.logprobs[:count]) == (
        before.token_ids,
        before.logprobs,
    )


def joined(before: Completion, segment: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Both in one, with the text of all tokens together: a character may lie on both sides of the border.

    So may a stop string, which the sampler of either side did not see: what comes after it is cut off.
    """
    token_ids = before.token_ids + segment.token_ids
    count, finish_reason = len(token_ids), segment.finish_reason
    text = decode(token_ids[:-1] if finish_reason == "stop" else token_ids)  # a token that ends it is no part of it

    def is_over(length: int) -> bool:
        return any(string in decode(token_ids[:length]) for string in stop)

    if stop and is_over(count):
        # The first token that completes one ends the completion, as when it is sampled at once.
        count = bisect_left(range(count), True, lo=len(before.token_ids) + 1, key=is_over)
        text, finish_reason = _before_stop(decode(token_ids[:count]), stop), "stop"
    return Completion(
        text=text,
        token_ids=token_ids[:count],
        logprobs=(before.logprobs + segment.logprobs)[:count],
        finish_reason=finish_reason,
        adapter=segment.adapter,
        earlier=before.segments,
    )


def _before_stop(text: str, stop: Sequence[str]) -> str:
    """Up to the stop string that ends first in the text."""
    first = min((string for string in stop if string in text), key=lambda string: text.find(string) + len(string))
    return text[: text.find(first)]
