"""Running out of memory in a step ends the run with lines that say which settings take less and how to resume, from the
last finished step even if no checkpoint was due then. The engine is scripted; everything else is the real command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rl_engine.learner.learner import Learner
from rl_engine.learner.statistics import LearnStats
from tests.helpers import forked, held_engine
from tests.helpers.answering_engine import UNCHECKED

SETTINGS = (
    "train.steps=2",
    "checkpoint.every=2",
    "train.problems_per_step=8",
    "sampling.n=4",
    "eval.every=0",
    "eval.at_start=false",
    "rewards.workers=1",
    "log.tensorboard=false",
    "output_dir=run",
    *UNCHECKED,
)


def run_out_of_memory(update: int) -> None:
    """Run out of memory in the second step, during the given update."""
    held_engine.prepare()
    step, pass_over = Learner.step, Learner._pass_over
    steps = passes = 0

    def counted(self: Learner, *arguments: Any, **options: Any) -> LearnStats:
        nonlocal steps, passes
        steps, passes = steps + 1, 0
        return step(self, *arguments, **options)

    def fails(self: Learner, *arguments: Any, **options: Any) -> None:
        nonlocal passes
        passes += 1
        if (steps, passes) == (2, update):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        pass_over(self, *arguments, **options)

    Learner.step, Learner._pass_over = counted, fails  # type: ignore[method-assign]


def train(directory: Path, *settings: str, prepare: Callable[[], None]) -> tuple[int, str]:
    environment = {"OMP_NUM_THREADS": "1", "HELD_PLACE": str(directory)}
    return forked.train(directory, *SETTINGS, *settings, environment=environment, prepare=prepare)


def test_a_learner_without_memory_says_what_takes_less(tmp_path: Path) -> None:
    code, output = train(tmp_path, prepare=partial(run_out_of_memory, 1))
    assert code == 1
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step000001"]
    assert "Traceback" not in output
    assert output.splitlines()[-3:] == [
        "error: step 2, version 1: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "To need less memory, lower learner.tokens_per_microbatch (8192) or set learner.gradient_checkpointing=true; "
        "in a new run, also lower sampling.max_tokens (72).",
        "What was saved before stands: --resume continues it.",
    ]


def test_half_of_a_steps_updates_are_not_saved(tmp_path: Path) -> None:
    code, output = train(tmp_path, "learner.updates_per_step=2", prepare=partial(run_out_of_memory, 2))
    assert (code, output.splitlines()[-1]) == (1, "No checkpoint of this run was saved.")


def run_out_of_memory_twice() -> None:
    """Run out of memory in the second step, and again while saving the first."""
    from rl_engine.train import loop

    run_out_of_memory(1)

    def fails(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

    setattr(loop, "learner_state", fails)  # noqa: B010 - mypy knows its type


def test_no_memory_to_save_with_hides_nothing(tmp_path: Path) -> None:
    code, output = train(tmp_path, prepare=run_out_of_memory_twice)
    assert code == 1
    assert "Traceback" not in output
    assert output.splitlines()[-3].startswith("error: step 2, version 1: out of memory: CUDA out of memory. Tried")
    assert output.splitlines()[-1] == "No checkpoint of this run was saved."
    assert "step 1 could not be saved: DefaultCPUAllocator: can't allocate memory" in " ".join(output.split())
