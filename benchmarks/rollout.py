"""Tokens per second of sampling: without an adapter, with vLLM's adapter kernels, and with ours.

    python -m benchmarks.rollout [--model embedded] [--dtype auto] [--sequences 16,64,128,512] [--rounds 5]

Every arm is an engine in its own process. In each round all of them sample the same prompts with the same seeds, one
after the other. The adapter has rank 1 on every linear layer, and values so small that all arms sample nearly the same
completions; `max 8` serves it padded to vLLM's next rank. Ratios are medians over rounds. As in a run, the engines are
compiled on a card and not on a CPU (`rollout/vllm/arguments.py`).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Literal

import typer

from rollout.adapters import AdapterStore
from rollout.config import WHOLE_CARD, ArithmeticConfig, ModelConfig, PromptConfig, SamplingConfig
from rollout.engine import EngineSettings
from rollout.models import locate_model
from rollout.prompts.arithmetic import arithmetic_problems
from rollout.servable import Dtype, check_precision, precision_of
from rollout.types import AdapterRef, Prompt

GOAL = 0.9
SAMPLES = 8
"""Completions per prompt."""
BASE, OURS = "no adapter", "rank 1, ours"


@dataclass(frozen=True, slots=True)
class Arm:
    """One engine: the rank it is built for (0 for none), and whether it uses our adapter kernels or vLLM's."""

    lora_rank: int
    own_products: bool


THEIRS = {BASE: Arm(0, False), "rank 1, vLLM": Arm(1, False), "max 8, vLLM": Arm(8, False)}
# On a card only vLLM's kernels are used.
ARMS = {
    "cpu": {**THEIRS, OURS: Arm(1, True), "max 8, ours": Arm(8, True)},
    "cuda": THEIRS,
}


@dataclass(frozen=True, slots=True)
class Work:
    """The work of every arm."""

    model: str
    dtype: Dtype
    tokens: int
    kv_cache_gib: float
    prompts: list[Prompt]
    adapter: AdapterRef
    device_type: str

    @property
    def arms(self) -> dict[str, Arm]:
        return ARMS[self.device_type]


def write_adapter(directory: Path, model: str) -> None:
    """Write a random rank-1 adapter in PEFT's format on every linear layer except the output head."""
    import torch
    from safetensors.torch import save_file

    from rl_engine.policy.base_model import load_meta_model
    from rl_engine.policy.lora.targets import adaptable

    draw = torch.Generator().manual_seed(0)
    tensors, layers = {}, adaptable(load_meta_model(ModelConfig(name=model)))
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(1, layer.inputs, generator=draw)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.outputs, 1, generator=draw) * 1e-5
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in layers})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def render(model: str, count: int) -> list[Prompt]:
    from transformers import AutoTokenizer

    from rollout.prompts.renderer import Renderer

    problems = arithmetic_problems(ArithmeticConfig(terms=(3, 6), largest=20), "train", count, 0)
    return Renderer(AutoTokenizer.from_pretrained(model), PromptConfig(instruction=None)).render_all(problems)


def serve(arm: Arm, work: Work, pipe: Connection) -> None:
    """The child process: an engine that answers (number of sequences, seed) with tokens per second, until None."""
    from rollout.vllm.engine import VllmEngine

    longest = max(len(prompt.token_ids) for prompt in work.prompts)
    engine = VllmEngine(
        EngineSettings(
            model=work.model,
            dtype=work.dtype,
            max_model_len=longest + work.tokens,
            lora_rank=arm.lora_rank,
            own_products=arm.own_products,
            kv_cache_gib=work.kv_cache_gib,
            # All arms share one card.
            memory_fraction=WHOLE_CARD / len(work.arms),
        )
    )
    if arm.lora_rank:
        engine.load_adapter(work.adapter)
    sampling = SamplingConfig(n=SAMPLES, temperature=1.0, max_tokens=work.tokens)
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        sequences, occasion = request
        prompts = work.prompts[: sequences // SAMPLES]
        seeds = [f"{occasion}/{index}" for index in range(len(prompts))]
        begin = time.perf_counter()
        groups = engine.generate(prompts, sampling, work.adapter if arm.lora_rank else None, seeds)
        seconds = time.perf_counter() - begin
        pipe.send(sum(len(c.token_ids) for group in groups for c in group.completions) / seconds)
    engine.close()


@contextmanager
def engines(work: Work) -> Iterator[dict[str, Connection]]:
    """Start the arms' processes and yield a pipe to each. They start one by one, because starts disturb each other."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    try:
        for name, arm in work.arms.items():
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(arm, work, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes[name].recv()
        yield pipes
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join(timeout=60)
    finally:
        for process in processes:
            process.terminate()


def measure(pipes: dict[str, Connection], sequences: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each arm in each round, after a warm-up round."""
    speeds: dict[str, list[float]] = {name: [] for name in pipes}
    for number in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send((sequences, f"{sequences}/{number}"))
            speed = pipe.recv()
            if number:
                speeds[name].append(speed)
    return speeds


def ratio(speeds: dict[str, list[float]], name: str) -> float:
    """An arm's speed relative to the speed without an adapter."""
    return statistics.median(a / b for a, b in zip(speeds[name], speeds[BASE], strict=True))


def _row(head: str, cells: Iterable[str]) -> str:
    return f"{head:>9}" + "".join(f"{cell:>16}" for cell in cells)


def main(
    model: Annotated[str, typer.Option(help="`embedded`, a directory or a hub id.")] = "embedded",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"], typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU.")
    ] = "auto",
    sequences: Annotated[str, typer.Option(help="Completions side by side, multiples of 8.")] = "16,64,128,512",
    tokens: Annotated[int, typer.Option(help="Longest completion.")] = 72,
    rounds: Annotated[int, typer.Option(help="Rounds over all arms.")] = 5,
    kv_cache_gib: Annotated[float, typer.Option(help="Memory for keys and values of each engine.")] = 1.0,
) -> None:
    """Print tokens per second by arm and number of sequences and, last, our ratio at the largest number."""
    import torch

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = precision_of(dtype, device_type)
    check_precision(chosen, device_type, "--dtype", adapter=True)
    sizes = [int(size) for size in sequences.split(",")]
    path = locate_model(model)
    arms, adapted = ARMS[device_type], OURS if OURS in ARMS[device_type] else "rank 1, vLLM"
    device = torch.cuda.get_device_name() if device_type == "cuda" else "CPU"
    print(f"{model}, {chosen}, {device}: tokens/s (ratio to {BASE})", flush=True)
    print(_row("sequences", arms), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = AdapterStore(Path(scratch))
        adapter = store.publish(0, lambda directory: write_adapter(directory, path), {"rank": 1})
        work = Work(path, chosen, tokens, kv_cache_gib, render(path, max(sizes) // SAMPLES), adapter, device_type)
        with engines(work) as pipes:
            for size in sizes:
                speeds = measure(pipes, size, rounds)
                cells = [f"{statistics.median(row):,.0f} ({ratio(speeds, name):.2f})" for name, row in speeds.items()]
                print(_row(str(size), cells), flush=True)
    print(f"adapter at {sizes[-1]} sequences (goal {GOAL:.2f}) ratio {ratio(speeds, adapted):.2f}")


if __name__ == "__main__":
    typer.run(main)
