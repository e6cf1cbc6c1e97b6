"""How a request is split into work items, and which answers these take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rollout.config import SamplingConfig
from rollout.types import AdapterRef, Completion, RolloutGroup, Segment
from rollout.work_items import LARGEST_PIECE, PromptBatch, WorkItem, extended, piece_size, pieces_of, split
from tests.helpers.builders import prompt

PROMPTS = [prompt(name) for name in "abcde"]
OLD, NEW = (AdapterRef(name="policy", version=n, path=Path(), sha256="", rank=1) for n in (1, 2))
SHORT, LONG = SamplingConfig(n=2, max_tokens=3), SamplingConfig(n=2, max_tokens=9)


def said(tokens: int, ref: AdapterRef, *, before: Completion | None = None) -> Completion:
    """A completion of this length: cut off at three tokens, ended otherwise."""
    return Completion(
        text="",
        token_ids=tuple(range(tokens)),
        logprobs=(-1.0,) * tokens,
        finish_reason="length" if tokens == 3 else "stop",
        adapter=ref.key,
        earlier=() if before is None else before.segments,
    )


def answered(item: WorkItem, *completions: Completion) -> list[RolloutGroup]:
    return [RolloutGroup(prompt=each, completions=completions) for each in item.prompts]


def test_a_request_is_done_when_all_its_items_are() -> None:
    request = split(PromptBatch(PROMPTS, SHORT, OLD, list("vwxyz")), 2)
    assert [(list(item.prompts), list(item.seeds)) for item in request.items] == [
        (PROMPTS[:2], ["v", "w"]),
        (PROMPTS[2:4], ["x", "y"]),
        (PROMPTS[4:], ["z"]),
    ]
    for item in reversed(request.items):
        assert not request.done
        assert item.ready
        assert item.take(answered(item, said(2, OLD), said(3, OLD))) is None
    assert request.done
    assert [group.prompt for group in request.groups()] == PROMPTS


def test_an_answer_to_something_else_is_not_taken() -> None:
    (item,) = split(PromptBatch(PROMPTS[:1], SHORT, OLD, ["v"]), 2).items
    both = (said(2, OLD), said(3, OLD))
    for groups, why in (
        (answered(item, *both, said(1, OLD)), "other prompts"),
        (answered(item, said(2, OLD)), "other prompts"),
        ([], "other prompts"),
        ([RolloutGroup(prompt=PROMPTS[1], completions=both)], "other prompts"),
        (answered(item, said(2, OLD), said(3, NEW)), "it sampled from policy-v000002 when asked for policy-v000001"),
    ):
        assert why in (item.take(groups) or "")
        assert item.groups is None


def test_a_later_leg_goes_on_with_what_was_cut_off_alone() -> None:
    """It may start when the leg before it is there. What had ended stays as it was, of the earlier version."""
    first = split(PromptBatch(PROMPTS[:2], SHORT, OLD, ["v", "w"]), 1)
    more = extended(first, LONG, NEW)
    assert (more.sampling, more.adapter) == (LONG, NEW)
    assert [(item.prompts, item.seeds, item.before) for item in more.items] == [
        (item.prompts, item.seeds, item) for item in first.items
    ]
    before, item = first.items[0], more.items[0]
    ready = [[each.ready for each in more.items]]
    ended, cut = said(2, OLD), said(3, OLD)
    before.take(answered(before, ended, cut))
    ready.append([each.ready for each in more.items])
    assert ready == [[False, False], [True, False]]
    went_on = said(5, NEW, before=cut)
    assert went_on.segments == (Segment(adapter=OLD.key, tokens=3), Segment(adapter=NEW.key, tokens=2))
    for wrong, why in (
        ((ended, said(5, NEW)), "did not go on"),
        ((said(4, NEW), went_on), "did not go on"),
        ((ended, replace(went_on, adapter=OLD.key)), "it sampled from policy-v000001 when asked for policy-v000002"),
    ):
        assert why in (item.take(answered(item, *wrong)) or "")
    assert item.take(answered(item, ended, went_on)) is None


@pytest.mark.parametrize(
    ("prompts", "workers", "expected"),
    [
        (32, 16, 2),
        (64, 2, 16),
        (8, 2, 4),
        (40, 2, 10),  # two turns of ten, not 16 and 16 and then 8
        (32, 3, 11),
        (31, 16, 2),
        (33, 16, 2),  # pieces of three would make eleven
        (8, 16, 1),
        (17, 1, 9),
        (0, 4, 1),
        (1, 1, 1),
    ],
)
def test_a_piece_by_hand(prompts: int, workers: int, expected: int) -> None:
    assert piece_size(prompts, workers) == expected


def test_every_worker_has_one_in_few_turns_of_even_shares() -> None:
    for prompts in range(1, 300):
        for workers in range(1, 40):
            piece = piece_size(prompts, workers)
            assert 1 <= piece <= LARGEST_PIECE
            pieces = pieces_of(prompts, piece)
            assert pieces >= min(workers, prompts)
            # No worker has more to do than an even share and one piece.
            assert pieces_of(pieces, workers) * piece <= prompts / workers + 2 * piece
            if prompts % (workers * LARGEST_PIECE) == 0:
                assert piece == LARGEST_PIECE
