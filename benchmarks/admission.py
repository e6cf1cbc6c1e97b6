"""Sampling speed with pieces one after the other, and with the next piece started while the longest completions of the
one before are still being sampled.

    python -m benchmarks.admission [--model embedded] [--pieces 12] [--completions 32] [--rounds 5]

One engine samples up to `--completions` at once, which is the size of a piece. Both arms sample the same pieces with
the same seeds, alternating within a round. Drained: each piece alone, as on a CPU. Admitted: a piece is started as soon
as fewer completions than that are left, as on a GPU. The gain depends on the spread of lengths, which `--temperature`
changes for the embedded model. The ratio is the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from contextlib import closing
from typing import Annotated, Any

import typer

from benchmarks.rollout import SAMPLES, render
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, InFlight
from rollout.models import locate_model
from rollout.types import Prompt

Piece = tuple[list[Prompt], list[str]]


def sample(engine: Any, pieces: list[Piece], sampling: SamplingConfig, at_once: int) -> tuple[list[InFlight], int]:
    """Return (completions of the pieces, engine steps). Pieces start while fewer than `at_once` completions are
    left."""
    waiting, begun, turns = deque(pieces), list[InFlight](), 0
    while waiting or any(not one.done for one in begun):
        while waiting and sum(one.left for one in begun) < at_once:
            prompts, seeds = waiting.popleft()
            begun.append(engine.begin(prompts, sampling, None, seeds))
        engine.advance()
        turns += 1
    return begun, turns


def lengths_of(begun: list[InFlight]) -> list[list[int]]:
    return [[len(c.token_ids) for group in one.groups() for c in group.completions] for one in begun]


def main(
    model: Annotated[str, typer.Option(help="`embedded`, a directory or a hub id.")] = "embedded",
    pieces: Annotated[int, typer.Option(min=2, help="Pieces in each round.")] = 12,
    completions: Annotated[
        int, typer.Option(min=SAMPLES, help="Completions of a piece, sampled at once; a multiple of 8.")
    ] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 72,
    temperature: Annotated[float, typer.Option(min=0.1, max=2, help="Spreads the lengths.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over both arms.")] = 5,
    kv_cache_gib: Annotated[float, typer.Option(help="CPU only: memory for keys and values.")] = 0.5,
) -> None:
    """Print tokens per second and tokens per engine step of both arms and, last, the ratio."""
    from rollout.vllm.engine import VllmEngine

    path, size = locate_model(model), completions // SAMPLES
    prompts = render(path, size * pieces)
    settings = EngineSettings(
        model=path,
        dtype="float32" if model == "embedded" else "bfloat16",
        max_model_len=max(len(prompt.token_ids) for prompt in prompts) + tokens,
        lora_rank=0,
        max_num_seqs=size * SAMPLES,
        kv_cache_gib=kv_cache_gib,
    )
    sampling = SamplingConfig(n=SAMPLES, temperature=temperature, max_tokens=tokens)
    arms = {"drained": 1, "admitted": size * SAMPLES}
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    widths: dict[str, list[float]] = {name: [] for name in arms}
    lengths: list[list[int]] = []
    with closing(VllmEngine(settings)) as engine:
        for number in range(rounds + 1):  # the first warms up
            work = [
                (prompts[start : start + size], [f"{number}/{place}" for place in range(start, start + size)])
                for start in range(0, len(prompts), size)
            ]
            for name, at_once in arms.items():
                start_s = time.perf_counter()
                begun, turns = sample(engine, work, sampling, at_once)
                seconds = time.perf_counter() - start_s
                found = lengths_of(begun)
                tokens_here = sum(map(sum, found))
                if number:
                    speeds[name].append(tokens_here / seconds)
                    widths[name].append(tokens_here / turns)
                    lengths += found
    spread = statistics.mean(statistics.mean(piece) / max(piece) for piece in lengths)
    print(f"{model}: {pieces} pieces of {size * SAMPLES} completions, in the mean {spread:.2f} as long as the longest")
    for name, row in speeds.items():
        spans, width = f"({min(row):,.0f} … {max(row):,.0f})", statistics.median(widths[name])
        print(f"{name:>9}{statistics.median(row):10,.0f} tokens/s {spans:>18}, {width:.1f} a turn of the engine")
    ratio = statistics.median(b / a for a, b in zip(speeds["drained"], speeds["admitted"], strict=True))
    print(f"admitted to drained, tokens a second ratio {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
