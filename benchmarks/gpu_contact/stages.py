"""Sizes → the stages in the order of what they are worth: what is asked first, the deadline cuts last."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_contact.learner import FIRST, SECOND
from benchmarks.gpu_contact.runs import resumed, steps_of, trained
from benchmarks.gpu_contact.sizes import Sizes

# A limit of a stage that has an engine has in it 90 s to 130 s of vLLM's start (H200).
MORE_STEPS = 2
"""That the resumed run makes."""
PYTHON = (sys.executable, "-m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One process and how long it may take.

    Example: `Stage(name="doctor", asks="…", command=("python", "-m", "rl_engine.doctor"), limit_s=120)`
    """

    name: str
    asks: str
    """The question it answers."""
    command: tuple[str, ...]
    limit_s: float
    after: str | None = None
    """The stage without which it can do nothing."""
    read: Callable[[], list[dict[str, Any]]] = field(default=list)
    """What can be read in the files it leaves, besides what it notes itself."""


def stages(sizes: Sizes, scratch: Path, model: Path | None) -> list[Stage]:
    """All of them. `scratch`: where runs and checkpoints go. `model`: a real model's directory, if there is one."""
    weights, step, *decoding = _sampled(sizes, scratch)
    real = [_real_model(sizes, scratch, model)] if model else []
    learner, larger = (_learner(sizes, group, 200) for group in (FIRST, SECOND))
    first = [_machine(sizes), _quickstart(sizes, scratch), learner, weights, step]
    asked = [*first, _resume(sizes, scratch), larger, _doctor(sizes), *decoding, *real]
    return [replace(stage, limit_s=stage.limit_s * sizes.patience) for stage in asked]


def _own(module: str, sizes: Sizes, *arguments: str) -> tuple[str, ...]:
    return (*PYTHON, f"benchmarks.gpu_contact.{module}", *arguments, "--sizes", sizes.name)


def _machine(sizes: Sizes) -> Stage:
    asks = "what is installed, and how fast are products and copies?"
    return Stage(name="machine", asks=asks, command=_own("machine", sizes), limit_s=90)


def _doctor(sizes: Sizes) -> Stage:
    command = (*PYTHON, "rl_engine.doctor", "--config", "quickstart.yaml", f"model.dtype={sizes.dtype}")
    asks = "do learner and sampler agree, before and after an update?"
    return Stage(name="doctor", asks=asks, command=(*command, *sizes.settings), limit_s=210)


def _train(sizes: Sizes, config: str, run: Path, *settings: str) -> tuple[str, ...]:
    return (*PYTHON, "rl_engine.train", "--config", config, f"output_dir={run}", *settings, *sizes.settings)


def _quickstart(sizes: Sizes, scratch: Path) -> Stage:
    run, steps = scratch / "quickstart", (f"train.steps={sizes.quickstart_steps}",)
    return Stage(
        name="quickstart",
        asks="does the whole circle learn?",
        command=_train(sizes, "quickstart.yaml", run, f"model.dtype={sizes.dtype}", *steps, *sizes.quickstart),
        limit_s=240,
        read=lambda: trained(run, "quickstart"),
    )


def _resume(sizes: Sizes, scratch: Path) -> Stage:
    stage = _quickstart(sizes, scratch)
    run, steps = scratch / "quickstart", sizes.quickstart_steps + MORE_STEPS
    return Stage(
        name="resume",
        asks="does a run go on from its checkpoint?",
        command=(*stage.command, "--resume", f"train.steps={steps}"),
        limit_s=200,
        after="quickstart",
        read=lambda: resumed(run, steps),
    )


def _sampled(sizes: Sizes, scratch: Path) -> list[Stage]:
    """What samples from the first shape: the checkpoint, a whole step, decoding with and without an adapter."""
    shape = sizes.first_shape
    checkpoint, run = scratch / shape, scratch / "step"
    settings = (
        f"model.name={checkpoint}",
        f"model.dtype={sizes.dtype}",
        f"sampling.n={sizes.samples}",
        f"sampling.max_tokens={sizes.tokens}",
        f"train.problems_per_step={sizes.problems}",
        "train.steps=3",
        "eval.suites=[]",
        "optim.lr=1e-5",
        # Random weights solve nothing: completions are told apart by their text.
        "rewards.correct_weight=0",
        "rewards.function=rl_engine.doctor.reward:spread",
        "rewards.function_weight=1",
    )
    work = f"{sizes.problems} × {sizes.samples} × {sizes.tokens:,} tokens"
    return [
        Stage(
            name="weights",
            asks=f"random weights of {shape}, written once",
            command=_own("weights", sizes, str(checkpoint), "--shape", shape),
            limit_s=60,
        ),
        Stage(
            name="step",
            asks=f"how long do sampling, learning and sync of {work} take?",
            command=_train(sizes, "quickstart.yaml", run, *settings),
            limit_s=300,
            after="weights",
            read=lambda: steps_of(run, shape),
        ),
        *(
            Stage(
                name=f"decoding-{name}",
                asks=f"tokens/s of {work}, the engine built {how}",
                command=_own("decoding", sizes, str(checkpoint), option),
                limit_s=300,
                after="weights",
            )
            for name, how, option in (
                ("adapter", "for rank 1", "--adapters"),
                ("none", "without adapters", "--no-adapters"),
            )
        ),
    ]


def _learner(sizes: Sizes, group: str, limit_s: float) -> Stage:
    model = list(sizes.shapes)[group == SECOND]
    return Stage(
        name=f"learner-{group}",
        asks=f"tokens/s, MFU and memory of the learner, {model}",
        command=_own("learner", sizes, "--group", group),
        limit_s=limit_s,
    )


def _real_model(sizes: Sizes, scratch: Path, model: Path) -> Stage:
    run = scratch / "real"
    settings = (f"model.name={model}", "model.dtype=bfloat16", "train.steps=4", "eval.every=0", "eval.limit=32")
    return Stage(
        name="real-model",
        asks="do sampler and learner agree on a real model, and how long is its step?",
        command=_train(sizes, "smollm2_arithmetic.yaml", run, *settings),
        limit_s=200,
        read=lambda: steps_of(run, model.name),
    )
