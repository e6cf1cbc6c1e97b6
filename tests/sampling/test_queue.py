"""A queue before an engine of this rank's own: it samples when a request is collected, this rank's share alone."""

from __future__ import annotations

from pathlib import Path

import torch

from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.queue import LocalQueue
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings
from rollout.types import Problem, Prompt
from tests.helpers.scripted_engine import ScriptedEngine

PROMPTS = [Prompt(problem=Problem(id=str(i), text="none", answer=""), text="none", token_ids=(1,)) for i in range(5)]
SEEDS = [f"long/{i}" for i in range(5)]
SAMPLING = SamplingConfig(n=2, max_tokens=9)


def queue_of(directory: Path, rank: int = 0, ranks: int = 1) -> LocalQueue:
    engine = ScriptedEngine(EngineSettings(model=str(directory), dtype="float32", max_model_len=8, lora_rank=1))
    return LocalQueue(engine, Ranks(rank, ranks, torch.device("cpu")))


def test_nothing_is_sampled_before_it_is_collected(tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    request = queue.submit(PROMPTS, SAMPLING, None, SEEDS)
    assert not (tmp_path / "log").exists()
    assert queue.collect(request) == queue.engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_each_rank_samples_its_share(tmp_path: Path) -> None:
    whole = queue_of(tmp_path).engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    for rank in (0, 1):
        queue = queue_of(tmp_path, rank, 2)
        assert queue.collect(queue.submit(PROMPTS, SAMPLING, None, SEEDS)) == whole[rank::2]
    none_left = queue_of(tmp_path, 1, 2)
    assert none_left.collect(none_left.submit(PROMPTS[:1], SAMPLING, None, SEEDS[:1])) == []


def test_what_is_extended_before_it_has_begun_is_sampled_at_once(tmp_path: Path) -> None:
    queue = queue_of(tmp_path)
    short = queue.submit(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 2}), None, SEEDS)
    whole = queue.collect(queue.extend(short, SAMPLING, None))
    assert whole == queue.engine.generate(PROMPTS, SAMPLING, None, SEEDS)
    assert {len(completion.segments) for group in whole for completion in group.completions} == {1}
