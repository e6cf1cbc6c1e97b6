"""An engine of another model in its own process: closing one in this process would also end the session's engine."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from rollout.config import SamplingConfig
from rollout.types import Prompt, RolloutGroup
from tests.helpers.forked import CONTEXT, fork


def sample(model: Path, prompts: Sequence[Prompt], samplings: Sequence[SamplingConfig], answer: Connection) -> None:
    """Run in the fork: sample and send the groups back."""
    from rollout.engine import EngineSettings
    from rollout.vllm.engine import VllmEngine

    engine = VllmEngine(
        EngineSettings(
            model=str(model), dtype="float32", max_model_len=128, lora_rank=0, max_num_seqs=64, kv_cache_gib=0.1
        )
    )
    seeds = [str(index) for index in range(len(prompts))]
    answer.send([engine.generate(prompts, sampling, None, seeds) for sampling in samplings])
    engine.close()


def sampled_elsewhere(
    model: Path, prompts: Sequence[Prompt], samplings: Sequence[SamplingConfig]
) -> list[list[RolloutGroup]]:
    """The groups that an engine of the base model in `model` samples for the prompts, under each of the settings."""
    here, there = CONTEXT.Pipe()
    process = fork(sample, model, prompts, samplings, there)
    process.start()
    there.close()
    assert here.poll(240), "no answer came"
    groups: list[list[RolloutGroup]] = here.recv()
    process.join(60)
    assert process.exitcode == 0
    return groups
