"""Stage H: tokens a second of sampling without an adapter and with one: what vLLM's adapter kernels cost.

One engine a process: built without adapters at all, or for rank 1 and asked with the adapter and without. All
completions of a round are sampled side by side and have the full length.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.sizes import ADAPTER, IDLE, NONE, SIZES, Sizes
from benchmarks.rollout import render, write_adapter
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings
from rollout.types import AdapterRef, Prompt

ROUNDS = 2


def start_engine(model: str, sizes: Sizes, prompts: list[Prompt], rank: int) -> Any:
    from rollout.vllm.engine import VllmEngine

    return VllmEngine(
        EngineSettings(
            model=model,
            dtype=sizes.dtype,  # type: ignore[arg-type]
            max_model_len=max(len(prompt.token_ids) for prompt in prompts) + sizes.tokens,
            lora_rank=rank,
            kv_cache_gib=0.1,
            max_num_seqs=512 if sizes.name == "card" else 32,
        )
    )


def speed(engine: Any, sizes: Sizes, prompts: list[Prompt], adapter: AdapterRef | None, occasion: str) -> float:
    """Completion tokens a second of one batch."""
    sampling = SamplingConfig(n=sizes.samples, temperature=1.0, max_tokens=sizes.tokens)
    begin = time.perf_counter()
    groups = engine.generate(prompts, sampling, adapter, [f"{occasion}/{index}" for index in range(len(prompts))])
    seconds = time.perf_counter() - begin
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    wanted = sizes.problems * sizes.samples * sizes.tokens
    if tokens != wanted:
        raise SystemExit(f"{tokens:,} tokens were sampled, not {wanted:,}: completions ended before their full length")
    return tokens / seconds


def main(
    model: Annotated[Path, typer.Argument(help="Directory of a checkpoint whose completions never end.")],
    sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")],
    adapters: Annotated[bool, typer.Option(help="Build the engine for an adapter of rank 1.")],
) -> None:
    """Measure one engine."""
    given = SIZES[sizes]
    prompts = render(str(model), given.problems)
    with tempfile.TemporaryDirectory() as scratch:
        arms: dict[str, AdapterRef | None] = {IDLE if adapters else NONE: None}
        engine = start_engine(str(model), given, prompts, int(adapters))
        if adapters:
            store = AdapterStore(Path(scratch))
            ref = store.publish(0, lambda directory: write_adapter(directory, str(model)), {"rank": 1})
            engine.load_adapter(ref)
            arms[ADAPTER] = ref
        for arm, adapter in arms.items():
            speed(engine, given, prompts, adapter, f"{arm}/warm")
            speeds = [speed(engine, given, prompts, adapter, f"{arm}/{number}") for number in range(ROUNDS)]
            note(
                "sampling",
                arm=arm,
                sequences=given.problems * given.samples,
                tokens=given.tokens,
                tokens_per_s=median(speeds),
            )
        engine.close()


if __name__ == "__main__":
    typer.run(main)
