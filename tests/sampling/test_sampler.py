"""Rollouts → graded groups: every completion has its own verdict, and its group keeps its place."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rewards import Grader, RewardConfig
from rewards.workers.processes import WorkersFailed
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.grading import GradingAside
from rl_engine.sampling.queue import Meanwhile
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
    """A queue whose requests are complete at once, or which delivers some groups before the others."""

    early: tuple[int, ...] = ()

    has_all_groups = False
    rollouts = (rollout("1", "1", "2", "3"), rollout("2", "2", "2", "2"), rollout("3", "1", "2", "3"))

    def collect(self, request: Request, meanwhile: Meanwhile) -> list[RolloutGroup]:
        for place in self.early:
            meanwhile([self.rollouts[place]])
        return list(self.rollouts)


@pytest.mark.parametrize("early", [(), (1,), (2, 0), (2, 1, 0)])
def test_each_completion_is_graded_against_its_own_answer(early: tuple[int, ...], grader: Grader) -> None:
    """Results keep their order, whichever group arrives first."""
    queue: Any = Queue()
    queue.early = early
    sampler = Sampler(queue, grader, Ranks(0, 1, torch.device("cpu")))
    batch = sampler.collect(Request(SAMPLING, None))
    assert [group.rollout for group in batch.groups] == list(queue.rollouts)
    assert [group.rewards for group in batch.groups] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert [group.has_signal for group in batch.groups] == [True, False, True]
    assert batch.rollout_s >= 0
    assert batch.grade_s > 0


class Counting(ThreadRank):
    """Records how much each rank sends to the others after grading."""

    sent: ClassVar[list[int]] = []

    def gather(self, mine: list[Any]) -> list[Any]:
        self.sent.append(len(pickle.dumps(mine)))
        return super().gather(mine)


@pytest.mark.parametrize("has_all_groups", [True, False])
def test_every_rank_has_all_groups_and_completions_travel_once(grader: Grader, has_all_groups: bool) -> None:
    """Every rank already has what workers sampled, but not what another rank sampled itself."""
    long = [replace(group, prompt=replace(group.prompt, text="?" * 10_000)) for group in Queue.rollouts]
    Counting.sent = []

    def collected(rank: ThreadRank) -> Any:
        groups = long if has_all_groups else rank.share(long)
        queue: Any = SimpleNamespace(has_all_groups=has_all_groups, collect=lambda *_: groups)
        return Sampler(queue, grader, rank).collect(Request(SAMPLING, None)).groups

    one, other = on_each(Counting.both(), collected, ())
    assert one == other
    assert [group.rollout for group in one] == long
    assert [group.rewards for group in one] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert (sum(Counting.sent) > 3 * 10_000) == (not has_all_groups)
    assert len(Counting.sent) == (2 if has_all_groups else 4)


def test_a_thought_opened_by_the_prompt_holds_no_answer(grader: Grader) -> None:
    """A thought that the prompt opened holds no answer until it is closed."""
    opened = prompt("?<|assistant|>\n<think>\n", problem="?", answer="1")
    said = (r"\boxed{1} or so", r"maybe 2</think>\boxed{1}", r"\boxed{1}</think>")
    group = RolloutGroup(prompt=opened, completions=tuple(completion(text) for text in said))
    sampler = Sampler(Queue(), grader, Ranks(0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    (graded,) = sampler._grade([group], SAMPLING.max_tokens)
    assert graded.rewards == [0.0, 1.0, 1.0]


def test_groups_are_graded_once_while_others_are_sampled() -> None:
    """Groups that arrive while a batch is being graded wait, and form the next batch."""
    groups = [rollout(str(number), "1", "2", "3") for number in range(5)]
    go_on, lots = threading.Event(), list[list[RolloutGroup]]()

    def grade(some: Sequence[RolloutGroup]) -> list[GradedGroup]:
        lots.append(list(some))
        assert threading.current_thread() is threading.main_thread() or go_on.wait(10)
        return [GradedGroup(group, ()) for group in some]

    with GradingAside(grade) as aside:
        aside.take(groups[:1])
        aside.take(groups[2:3])
        aside.take(groups[4:])
        go_on.set()
        while not aside._lots[0].done():
            pass
        aside.take(groups[3:4])
        graded = aside.all_of(groups)
    assert [one.rollout for one in graded] == groups
    assert lots == [groups[:1], [groups[2], groups[4], groups[3]], groups[1:2]]


def test_a_grader_that_is_closed_ends_what_another_thread_grades(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run exits within seconds, whatever its reward function is doing."""
    (tmp_path / "endless.py").write_text("import time\n\ndef reward(completion): time.sleep(60)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = RewardConfig(workers=1, timeout_s=60, function="endless:reward")
    with (
        Grader.from_config(config) as grader,
        GradingAside(
            lambda groups: [GradedGroup(group, tuple(grader.grade([("x", "1")]))) for group in groups]
        ) as aside,
    ):
        aside.take([rollout("1", "1")])
        while not grader._pool._workers or not grader._pool._workers[0].assigned:
            assert not aside._lots[0].done()
            time.sleep(0.01)
        start = time.monotonic()
        grader.close()
        assert time.monotonic() - start < 5
    with pytest.raises(WorkersFailed, match="the grader was closed while it graded"):
        aside._lots[0].result(10)
