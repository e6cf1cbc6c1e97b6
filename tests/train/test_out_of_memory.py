"""Memory that runs out in a step: the run ends in lines that say what takes less, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rl_engine.learner.learner import Learner
from tests.helpers import forked

SETTINGS = (
    "train.steps=2",
    "train.problems_per_step=2",
    "sampling.n=4",
    "eval.every=0",
    "eval.at_start=false",
    "rollout.kv_cache_gib=0.25",
    "rewards.workers=1",
    "log.tensorboard=false",
    "output_dir=run",
)


def run_out_of_memory() -> None:
    """In the second step's pass."""
    step, steps = Learner.step, 0

    def second_fails(self: Learner, *arguments: object, **options: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        made: Callable[..., object] = step
        return made(self, *arguments, **options)

    Learner.step = second_fails  # type: ignore[method-assign,assignment]


def test_a_learner_without_memory_says_what_takes_less(tmp_path: Path) -> None:
    one_core = {"OMP_NUM_THREADS": "1"}
    code, output = forked.train(tmp_path, *SETTINGS, environment=one_core, prepare=run_out_of_memory)
    assert code == 1
    assert "Traceback" not in output
    assert output.splitlines()[-3:] == [
        "error: step 2, version 1: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "What lowers it: learner.tokens_per_microbatch (8192), learner.gradient_checkpointing=true; and in a new run "
        "sampling.max_tokens (72).",
        "What was saved before stands: --resume continues it.",
    ]
