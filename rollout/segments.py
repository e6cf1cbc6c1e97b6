"""An unfinished completion and its continuation → one completion, as if sampled in one go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from rollout.types import Completion

Decode = Callable[[Sequence[int]], str]


def is_unfinished(completion: Completion, max_tokens: int) -> bool:
    """Whether the completion was cut off by a smaller limit than `max_tokens`."""
    return completion.finish_reason == "length" and len(completion.token_ids) < max_tokens


def goes_on(before: Completion, after: Completion, max_tokens: int) -> bool:
    """Whether `after` continues `before`, or equals it if `before` was finished."""
    if not is_unfinished(before, max_tokens):
        return after == before
    count = len(before.token_ids)
    return after.earlier == before.segments and (after.token_ids[:count], after.logprobs[:count]) == (
        before.token_ids,
        before.logprobs,
    )


def joined(before: Completion, segment: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Join a completion and its continuation, decoding all tokens together: a character may span the border.

    So may a stop string, which neither sampler saw: everything after it is cut off.
    """
    token_ids = before.token_ids + segment.token_ids
    count, finish_reason = len(token_ids), segment.finish_reason
    text = decode(token_ids[:-1] if finish_reason == "stop" else token_ids)  # the text excludes the stop token

    def is_over(length: int) -> bool:
        return any(string in decode(token_ids[:length]) for string in stop)

    if is_over(count):
        # The first token that completes a stop string ends the completion, as if it were sampled in one go.
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
    """The text before the stop string that ends first."""
    first = min((string for string in stop if string in text), key=lambda string: text.find(string) + len(string))
    return text[: text.find(first)]
