"""Queues in front of this rank's own engine: batch by batch as requests are collected, or all requests side by side.
Each samples only this rank's share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.queue import LocalQueue, StreamingQueue
from rollout.config import SamplingConfig
from rollout.engine import EngineError, EngineSettings
from rollout.stopping import Stopped, StopRequest
from rollout.types import Problem, Prompt, RolloutGroup
from rollout.work_items import PromptBatch
from tests.helpers.same_groups import assert_same_but_for_rounding
from tests.helpers.scripted_engine import ScriptedEngine
from tests.helpers.streaming_engine import StreamingScripted

PROMPTS = [Prompt(problem=Problem(id=str(i), text="none", answer=""), text="none", token_ids=(1,)) for i in range(5)]
SEEDS = [f"long/{i}" for i in range(5)]
SAMPLING = SamplingConfig(n=2, max_tokens=9)


def queue_of(directory: Path, rank: int = 0, ranks: int = 1) -> LocalQueue:
    engine = ScriptedEngine(EngineSettings(model=str(directory), dtype="float32", max_model_len=8, lora_rank=1))
    return LocalQueue(engine, Ranks(rank, ranks, torch.device("cpu")))


def test_nothing_is_sampled_before_it_is_collected(tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    request = queue.submit(PromptBatch(PROMPTS, SAMPLING, None, SEEDS))
    assert not (tmp_path / "log").exists()
    assert queue.collect(request) == queue.engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_each_rank_samples_its_share(tmp_path: Path) -> None:
    whole = queue_of(tmp_path).engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    for rank in (0, 1):
        queue = queue_of(tmp_path, rank, 2)
        assert queue.collect(queue.submit(PromptBatch(PROMPTS, SAMPLING, None, SEEDS))) == whole[rank::2]
    none_left = queue_of(tmp_path, 1, 2)
    assert none_left.collect(none_left.submit(PromptBatch(PROMPTS[:1], SAMPLING, None, SEEDS[:1]))) == []


def test_what_is_extended_before_it_has_begun_is_sampled_at_once(tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    short = queue.submit(PromptBatch(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 2}), None, SEEDS))
    whole = queue.collect(queue.extend(short, SAMPLING, None))
    assert whole == queue.engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    assert {len(completion.segments) for group in whole for completion in group.completions} == {1}


def streaming(directory: Path, rank: int = 0, ranks: int = 1, stop: StopRequest | None = None) -> StreamingQueue:
    engine = StreamingScripted(EngineSettings(model=str(directory), dtype="float32", max_model_len=8, lora_rank=1))
    return StreamingQueue(engine, Ranks(rank, ranks, torch.device("cpu")), stop or StopRequest())


def prompt_of(name: str, fault: str) -> Prompt:
    return Prompt(problem=Problem(id=name, text=fault, answer=""), text=fault, token_ids=(1,))


def test_groups_are_begun_at_once_and_reported_as_they_come(tmp_path: Path) -> None:
    """Two requests run side by side: the second is complete when the first, which has a slow prompt, is."""
    queue = streaming(tmp_path)
    prompts = [prompt_of("slow", "slow"), *PROMPTS]
    seeds, told = ["long/slow", *SEEDS], list[RolloutGroup]()
    first = queue.submit(PromptBatch(prompts, SAMPLING, None, seeds))
    second = queue.submit(PromptBatch(PROMPTS, SAMPLING, None, SEEDS))
    assert len((tmp_path / "log").read_text().splitlines()) == 11

    def meanwhile(groups: Sequence[RolloutGroup]) -> None:
        assert not first.done
        told.extend(groups)

    groups = queue.collect(first, meanwhile)
    assert [group.prompt for group in groups] == prompts
    assert told == groups[1:]
    assert second.done
    assert queue.collect(second, meanwhile) == groups[1:]
    assert told == groups[1:], "what is there as a whole is not told"
    assert not queue._going


def test_each_rank_begins_its_share(tmp_path: Path) -> None:
    whole = queue_of(tmp_path).engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    for rank in (0, 1):
        queue = streaming(tmp_path, rank, 2)
        assert queue.collect(queue.submit(PromptBatch(PROMPTS, SAMPLING, None, SEEDS))) == whole[rank::2]
    none_left = streaming(tmp_path, 1, 2)
    assert none_left.collect(none_left.submit(PromptBatch(PROMPTS[:1], SAMPLING, None, SEEDS[:1]))) == []


def test_what_is_extended_goes_on_group_by_group(tmp_path: Path) -> None:
    queue = streaming(tmp_path)
    short = queue.submit(PromptBatch(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 2}), None, SEEDS))
    whole = queue.collect(queue.extend(short, SAMPLING, None))
    said = [[c.token_ids for c in group.completions] for group in whole]
    at_once = queue.engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    assert said == [[c.token_ids for c in group.completions] for group in at_once]
    assert {len(c.segments) for group in whole for c in group.completions} == {1, 2}


def test_an_answer_from_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stale").touch()
    queue = streaming(tmp_path)
    request = queue.submit(PromptBatch([prompt_of("x", "stale")], SAMPLING, None, ["x"]))
    with pytest.raises(EngineError, match="it sampled from policy-v000099 when asked for base"):
        queue.collect(request)


@pytest.mark.engine
def test_a_request_to_stop_comes_between_two_tokens(vllm_engine: Any, tokenizer: Any) -> None:
    """The engine can sample again afterwards."""
    problems = [Problem(id=text, text=text, answer="") for text in ("3+4=?", "9+8+1=?")]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    sampling, seeds = SamplingConfig(n=4, max_tokens=20), ["a", "b"]
    alone = [vllm_engine.generate([p], sampling, None, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    stop = StopRequest()

    class Signalled:
        """An engine that receives a signal in the middle of its third token."""

        turns = 0

        def begin(self, *arguments: Any) -> Any:
            return vllm_engine.begin(*arguments)

        def advance(self) -> Any:
            self.turns += 1
            if self.turns == 3:
                stop._handle(15, None)
            return vllm_engine.advance()

    queue = StreamingQueue(Signalled(), Ranks(0, 1, torch.device("cpu")), stop)  # type: ignore[arg-type]
    request = queue.submit(PromptBatch(prompts, sampling, None, seeds))
    with pytest.raises(Stopped):
        queue.collect(request)
    assert not request.done
    stop.signum = None
    assert_same_but_for_rounding(queue.collect(request), alone)
    assert not vllm_engine._asked
