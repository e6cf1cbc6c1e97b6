"""Stage E: a run of three whole steps at the first shape, and then tokens a second of its own engine with the run's
adapter and without: what vLLM's adapter kernels cost.

One engine for both: its start takes longer than all that is measured. A request without an adapter gets CUDA graphs of
its own there, captured while no adapter was active, in which vLLM's adapter operations ask for no kernel: they return
before it (`lora_shrink_op.py`, `lora_expand_op.py`). What an engine built without adapters would gain besides, where
no such operation stands between two others, is not in the figure; `python -m benchmarks.rollout` has such an arm. All
completions of a round are sampled side by side and have the full length, and rounds with and without take turns.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from unittest.mock import patch

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, SIZES, Sizes
from benchmarks.gpu_contact.weights import write_checkpoint
from benchmarks.rollout import render
from rollout.config import SamplingConfig
from rollout.types import AdapterRef, Prompt

ROUNDS = 2
WARM_UP_TOKENS = 16


def speed(engine: Any, sizes: Sizes, prompts: list[Prompt], adapter: AdapterRef | None, occasion: str) -> float:
    """Completion tokens a second of one batch. Raises `SystemExit` where a completion is shorter than asked for."""
    sampling = SamplingConfig(n=sizes.samples, temperature=1.0, max_tokens=sizes.tokens)
    begin = time.perf_counter()
    groups = engine.generate(prompts, sampling, adapter, [f"{occasion}/{index}" for index in range(len(prompts))])
    seconds = time.perf_counter() - begin
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    wanted = sizes.problems * sizes.samples * sizes.tokens
    if tokens != wanted:
        raise SystemExit(f"{tokens:,} tokens were sampled, not {wanted:,}: completions ended before their full length")
    return tokens / seconds


def decode(run: Any, sizes: Sizes) -> None:
    """Ask the engine of a run that is trained, with its newest version and without any."""
    engine, prompts = run.sampler.engine, render(run.config.model.name, sizes.problems)
    arms: dict[str, AdapterRef | None] = {IDLE: None, ADAPTER: run.adapter}
    # The run has sampled with its adapters; without one nothing has been asked yet.
    few = SamplingConfig(n=sizes.samples, temperature=1.0, max_tokens=min(WARM_UP_TOKENS, sizes.tokens))
    engine.generate(prompts, few, None, [f"warm/{index}" for index in range(len(prompts))])
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(ROUNDS):
        for arm, adapter in arms.items():
            speeds[arm].append(speed(engine, sizes, prompts, adapter, f"{arm}/{number}"))
    sequences = sizes.problems * sizes.samples
    for arm, measured in speeds.items():
        note("sampling", arm=arm, sequences=sequences, tokens=sizes.tokens, tokens_per_s=median(measured))


def decode_at_the_end(sizes: Sizes) -> None:
    """Have the runs of this process ask their engines, too, when they are trained and before those are closed."""
    from rl_engine.train import one_run
    from rl_engine.train.loop import LiveRun, train

    def train_and_decode(run: LiveRun) -> None:
        train(run)
        decode(run, sizes)

    patch.object(one_run, "train", train_and_decode).start()


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    settings: Annotated[list[str], typer.Argument(metavar="KEY.SUB=VALUE", help="Settings of the run.")],
    sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")],
) -> None:
    """Write the checkpoint, train on it as `python -m rl_engine.train` does, and measure before the engine ends."""
    given = SIZES[sizes]
    note("weights", **write_checkpoint(checkpoint, given, given.first_shape))
    decode_at_the_end(given)
    from rl_engine.train.__main__ import app

    app(["--config", "quickstart.yaml", f"model.name={checkpoint}", *settings])


if __name__ == "__main__":
    typer.run(main)
