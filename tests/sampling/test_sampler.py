"""Rollouts → graded groups: every completion has its own verdict, and its group's place."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rewards import Grader
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.sampler import Sampler
from rollout.config import SamplingConfig
from rollout.types import RolloutGroup
from rollout.work_items import Request
from tests.helpers.builders import completion, prompt
from tests.helpers.thread_ranks import ThreadRank, on_each

SAMPLING = SamplingConfig(n=3, max_tokens=8)


def rollout(answer: str, *said: str) -> RolloutGroup:
    completions = tuple(completion(f"\\boxed{{{text}}}") for text in said)
    return RolloutGroup(prompt=prompt("?", id=answer, answer=answer), completions=completions)


class Queue:
    """A queue whose requests are there at once."""

    tells_all = False
    rollouts = (rollout("1", "1", "2", "3"), rollout("2", "2", "2", "2"), rollout("3", "1", "2", "3"))

    def collect(self, request: Request) -> list[RolloutGroup]:
        return list(self.rollouts)


def test_each_completion_is_graded_against_the_answer_of_its_problem(grader: Grader) -> None:
    queue: Any = Queue()
    sampler = Sampler(queue, grader, Ranks(0, 1, torch.device("cpu")))
    batch = sampler.collect(Request(SAMPLING, None))
    assert [group.rollout for group in batch.groups] == list(queue.rollouts)
    assert [group.rewards for group in batch.groups] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert [group.has_signal for group in batch.groups] == [True, False, True]
    assert batch.rollout_s >= 0
    assert batch.grade_s > 0


class Counting(ThreadRank):
    """Notes how much each rank sends the others after grading."""

    sent: ClassVar[list[int]] = []

    def gather(self, mine: list[Any]) -> list[Any]:
        self.sent.append(len(pickle.dumps(mine)))
        return super().gather(mine)


@pytest.mark.parametrize("tells_all", [True, False])
def test_every_rank_has_all_groups_with_their_verdicts_and_completions_are_sent_once(
    grader: Grader, tells_all: bool
) -> None:
    """What workers sampled every rank has heard of already; what a rank sampled itself the others have not."""
    long = [replace(group, prompt=replace(group.prompt, text="?" * 10_000)) for group in Queue.rollouts]
    Counting.sent = []

    def collected(rank: ThreadRank) -> Any:
        groups = long if tells_all else rank.share(long)
        queue: Any = SimpleNamespace(tells_all=tells_all, collect=lambda _: groups)
        return Sampler(queue, grader, rank).collect(Request(SAMPLING, None)).groups

    one, other = on_each(Counting.both(), collected, ())
    assert one == other
    assert [group.rollout for group in one] == long
    assert [group.rewards for group in one] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert (sum(Counting.sent) > 3 * 10_000) == (not tells_all)
    assert len(Counting.sent) == (2 if tells_all else 4)


def test_a_thought_that_the_prompt_opened_holds_no_answer_until_it_is_closed(grader: Grader) -> None:
    opened = prompt("?<|assistant|>\n<think>\n", problem="?", answer="1")
    said = (r"\boxed{1} or so", r"maybe 2</think>\boxed{1}", r"\boxed{1}</think>")
    group = RolloutGroup(prompt=opened, completions=tuple(completion(text) for text in said))
    sampler = Sampler(Queue(), grader, Ranks(0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    (results,) = sampler._grade([group], SAMPLING)
    assert [result.reward for result in results] == [0.0, 1.0, 1.0]
