"""Sizes → the stages, most valuable first, so that the deadline cuts the least valuable ones.

The seconds are for an H200 (docs/gpu.md says which of them were measured). All stages before the doctor fit into a
deadline of 590 s together. The last of these is the learner, whose figures arrive one by one from its first minute on.
Most of the time is startup: vLLM compiles the model, compiles Triton kernels and captures CUDA graphs. It caches what
it has compiled for a configuration under `VLLM_CACHE_ROOT`, and Triton caches what is the same for all models, so that
the quickstart's configuration starts quickly the second time (`resume`, `doctor`) and the `step` stage finds the
kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_contact.runs import resumed, steps_of, trained
from benchmarks.gpu_contact.sizes import Sizes

MORE_STEPS = 2
"""Steps that the resumed run adds."""
SPARE_S = 90.0
"""How much longer than expected a stage may take: what the 1.5B model's start spent on work that may be cached (18 s to
inspect the model's class, 25 s to compile it, about 20 s to compile kernels), and reading files for the first time."""
PYTHON = (sys.executable, "-m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One process, and how long it may take.

    Example: `Stage(name="doctor", asks="…", command=("python", "-m", "rl_engine.doctor"), expected_s=70)`
    """

    name: str
    asks: str
    """The question that it answers."""
    command: tuple[str, ...]
    expected_s: float
    """Seconds that it takes on a card like an H100."""
    patience: float = 1.0
    """Factor on its limit on other machines."""
    after: str | None = None
    """The stage that it depends on."""
    read: Callable[[], list[dict[str, Any]]] = field(default=list)
    """Reads figures from the files it leaves, in addition to those it records itself."""

    @property
    def limit_s(self) -> float:
        """Seconds that it may take."""
        return self.patience * (self.expected_s + SPARE_S)


def stages(sizes: Sizes, scratch: Path, model: Path | None) -> list[Stage]:
    """All stages. `scratch`: where runs and checkpoints go. `model`: a real model's directory, if there is one."""
    real = [_real_model(sizes, scratch, model)] if model else []
    first = [_machine(sizes), _quickstart(sizes, scratch), _resume(sizes, scratch), _step(sizes, scratch)]
    asked = [*first, _learner(sizes), _doctor(sizes), *real]
    return [replace(stage, patience=sizes.patience) for stage in asked]


def _own(module: str, sizes: Sizes, *arguments: str) -> tuple[str, ...]:
    return (*PYTHON, f"benchmarks.gpu_contact.{module}", *arguments, "--sizes", sizes.name)


def _machine(sizes: Sizes) -> Stage:
    return Stage(
        name="machine",
        asks="what is installed, and how fast are products and copies?",
        command=_own("machine", sizes),
        expected_s=35,
    )


def _doctor(sizes: Sizes) -> Stage:
    settings = (f"model.dtype={sizes.dtype}", "rollout.sleep=true", *sizes.settings)
    return Stage(
        name="doctor",
        asks="do learner and sampler agree before and after an update, with the sampler put to sleep between?",
        command=(*PYTHON, "rl_engine.doctor", "--config", "quickstart.yaml", *settings),
        expected_s=70,
    )


def _train(sizes: Sizes, config: str, run: Path, *settings: str) -> tuple[str, ...]:
    return (*PYTHON, "rl_engine.train", "--config", config, f"output_dir={run}", *sizes.settings, *settings)


def _quickstart_command(sizes: Sizes, run: Path) -> tuple[str, ...]:
    steps = f"train.steps={sizes.quickstart_steps}"
    return _train(sizes, "quickstart.yaml", run, f"model.dtype={sizes.dtype}", steps, *sizes.quickstart)


def _quickstart(sizes: Sizes, scratch: Path) -> Stage:
    run = scratch / "quickstart"
    return Stage(
        name="quickstart",
        asks="does the whole circle learn?",
        command=_quickstart_command(sizes, run),
        expected_s=135,
        read=lambda: trained(run, "quickstart"),
    )


def _resume(sizes: Sizes, scratch: Path) -> Stage:
    run, steps = scratch / "quickstart", sizes.quickstart_steps + MORE_STEPS
    return Stage(
        name="resume",
        asks="does a run go on from its checkpoint, its sampler now asleep while the learner works?",
        command=(*_quickstart_command(sizes, run), "--resume", f"train.steps={steps}", "rollout.sleep=true"),
        expected_s=70,
        after="quickstart",
        read=lambda: resumed(run, "quickstart", steps, MORE_STEPS),
    )


def _step(sizes: Sizes, scratch: Path) -> Stage:
    """Three whole steps with the first shape, and decoding with and without an adapter in the run's engine."""
    shape, run = sizes.first_shape, scratch / "step"
    side_by_side = sizes.problems * sizes.samples
    settings = (
        f"output_dir={run}",
        *sizes.settings,
        f"model.dtype={sizes.dtype}",
        f"sampling.n={sizes.samples}",
        f"sampling.max_tokens={sizes.tokens}",
        f"train.problems_per_step={sizes.problems}",
        "train.steps=3",
        # Only as many problems as three steps need, and no CUDA graphs for batch sizes that are never sampled.
        f"data.limit={3 * sizes.problems}",
        f"rollout.max_num_seqs={side_by_side}",
        "eval.suites=[]",
        "optim.lr=1e-5",
        # Random weights solve nothing, so rewards depend on the completions' text.
        "rewards.correct_weight=0",
        "rewards.function=rl_engine.doctor.reward:spread",
        "rewards.function_weight=1",
    )
    return Stage(
        name="step",
        asks=f"how long do sampling, with and without an adapter, learning and sync of {sizes.problems} × "
        f"{sizes.samples} × {sizes.tokens:,} tokens take?",
        command=_own("step", sizes, str(scratch / shape), *settings),
        expected_s=200,
        read=lambda: steps_of(run, shape),
    )


def _learner(sizes: Sizes) -> Stage:
    return Stage(
        name="learner",
        asks=f"tokens/s, MFU and memory of the learner, {' and '.join(sizes.shapes)}",
        command=_own("learner", sizes),
        expected_s=150,
    )


def _real_model(sizes: Sizes, scratch: Path, model: Path) -> Stage:
    run = scratch / "real"
    settings = (f"model.name={model}", "model.dtype=bfloat16", "train.steps=4", "eval.every=0", "eval.limit=32")
    return Stage(
        name="real-model",
        asks="do sampler and learner agree on a real model, and how long is its step?",
        command=_train(sizes, "smollm2_arithmetic.yaml", run, *settings),
        expected_s=130,
        read=lambda: steps_of(run, model.name),
    )
