"""Stage E: a run of three whole steps with the first shape, and then the tokens per second of its engine with the run's
adapter and without, which show the cost of vLLM's adapter kernels.

Both use one engine, because starting it takes longer than all measurements. Requests without an adapter get their own
CUDA graphs, captured while no adapter was active, in which vLLM's adapter operations return without launching a kernel
(`lora_shrink_op.py`, `lora_expand_op.py`). An engine built without adapter support would gain a little more, because
these operations would not separate others; `python -m benchmarks.rollout` has such an arm. All completions of a round
are sampled side by side at full length, and rounds with and without an adapter alternate.

Finally, two short rounds show what a decoding step waits for: torch's profiler gives the seconds in which the card is
busy, and Python's profiler the functions in which the host spends its time.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.learner import kernels_of
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, SIZES, Sizes
from benchmarks.gpu_contact.weights import write_checkpoint
from benchmarks.rollout import render
from rollout.config import SamplingConfig
from rollout.types import AdapterRef, Prompt

ROUNDS = 2
WARM_UP_TOKENS = 16
LOOKED_AT_TOKENS = 64
FUNCTIONS = 12
"""How many of the host's functions are reported."""


def sampling_of(sizes: Sizes, tokens: int) -> SamplingConfig:
    """Sampling settings for `tokens` tokens per completion, but at most the full length."""
    return SamplingConfig(n=sizes.samples, temperature=1.0, max_tokens=min(tokens, sizes.tokens))


def speed(engine: Any, sizes: Sizes, prompts: list[Prompt], adapter: AdapterRef | None, occasion: str) -> float:
    """Completion tokens per second of one batch. Raises `SystemExit` if a completion is shorter than requested."""
    sampling = sampling_of(sizes, sizes.tokens)
    begin = time.perf_counter()
    groups = engine.generate(prompts, sampling, adapter, [f"{occasion}/{index}" for index in range(len(prompts))])
    seconds = time.perf_counter() - begin
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    wanted = sizes.problems * sizes.samples * sizes.tokens
    if tokens != wanted:
        raise SystemExit(f"{tokens:,} tokens were sampled, not {wanted:,}: completions ended before their full length")
    return tokens / seconds


def decode(run: Any, sizes: Sizes) -> None:
    """Measure the engine of a finished run, with the newest version and without an adapter."""
    engine, prompts = run.sampler.engine, render(run.config.model.name, sizes.problems)
    arms: dict[str, AdapterRef | None] = {IDLE: None, ADAPTER: run.adapter}
    # The run has sampled with its adapters, but never without one, so warm that up.
    engine.generate(
        prompts, sampling_of(sizes, WARM_UP_TOKENS), None, [f"warm/{index}" for index in range(len(prompts))]
    )
    sequences = sizes.problems * sizes.samples
    for number in range(ROUNDS):
        for arm, adapter in arms.items():
            measured = speed(engine, sizes, prompts, adapter, f"{arm}/{number}")
            note("sampling", arm=arm, sequences=sequences, tokens=sizes.tokens, tokens_per_s=measured)
    look_into(engine, sizes, prompts, run.adapter)


def look_into(engine: Any, sizes: Sizes, prompts: list[Prompt], adapter: AdapterRef) -> None:
    """Record where the time of a decoding step goes: on the card, and in which functions of the host."""
    sampling = sampling_of(sizes, LOOKED_AT_TOKENS)

    def decode_few() -> None:
        engine.generate(prompts, sampling, adapter, [f"looked at/{index}" for index in range(len(prompts))])

    begin = time.perf_counter()
    decode_few()
    seconds = time.perf_counter() - begin
    note("decoding step", tokens=sampling.max_tokens, seconds=seconds, **kernels_of(decode_few))
    profile = cProfile.Profile()
    profile.runcall(decode_few)
    stats = pstats.Stats(profile).get_stats_profile()
    # Sorted by own time: by cumulative time, the loop itself would come first.
    slowest = sorted(stats.func_profiles.items(), key=lambda item: item[1].tottime, reverse=True)[:FUNCTIONS]
    for name, one in slowest:
        where = f"{Path(one.file_name).name}:{one.line_number}" if one.line_number else "built in"
        note("host", function=name, where=where, calls=str(one.ncalls), seconds=one.tottime, whole_s=stats.total_tt)


def decode_at_the_end(sizes: Sizes) -> None:
    """Make runs in this process measure their engines after training, before the engines are closed."""
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
