"""Tokens per second of the learner's forward and backward pass, LoRA and full, against the machine's matrix products.

    python -m benchmarks.learner --model DIR_OR_HUB_ID

The bound is measured in the same run: the time of only the linear layers' matrix products, shape by shape, at the size
of the micro-batch (for LoRA the forward product and the input's gradient, for full also the weight's gradient; the
output embedding for completion tokens only). LoRA, full and bound alternate, and medians are compared. LoRA's layers
are compiled where a run would compile them.

MFU is the operations of those products per second of the pass, relative to what one large square product of the same
precision achieves on the same device. On a card all times include waiting for the kernels, and the last column is the
peak memory allocated by torch, including the weights of both learners.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from rl_engine.config import Config, load_config
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.objective import objective
from rl_engine.learner.ranks import join_ranks, leave_ranks
from rl_engine.policy.base_model import DTYPES, load_meta_model
from rl_engine.policy.lora.targets import adaptable
from rl_engine.policy.micro_batch import MicroBatch
from rollout.config import ModelConfig

Seconds = dict[str, list[float]]
# Sides of the square product that measures the device's speed.
SQUARE_PRODUCT = "one large product"
SQUARE = {"cpu": 2048, "cuda": 8192}


def micro_batch(sequences: int, group: int, prompt: int, completion: int, vocabulary: int, layout: str) -> MicroBatch:
    """A micro-batch of random tokens, all rows of one length: the time does not depend on what the tokens are."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, vocabulary, (sequences, prompt + completion), generator=generator).tolist()
    return collate(
        [
            TrainingSample(
                prompt_ids=tuple(tokens[index - index % group][:prompt]),
                completion_ids=tuple(row[prompt:]),
                behaviour_logprobs=(-3.0,) * completion,
                advantage=1.0 if index % 2 else -1.0,
                weight=1 / (sequences * completion),
            )
            for index, row in enumerate(tokens)
        ],
        0,
        layout,
    )


def pass_of(learner: Learner, batch: MicroBatch) -> Callable[[], None]:
    """One forward and backward pass of a micro-batch, as in a training step."""

    def run() -> None:
        logprob_N, entropy_N = learner.deepspeed_engine(batch)
        part = objective(learner.config.loss, batch, batch.spread(logprob_N), batch.spread(entropy_N), None)
        learner.deepspeed_engine.backward(part.loss)

    return run


def shapes_of(model: nn.Module, batch: MicroBatch) -> list[tuple[int, int, int, int]]:
    """(rows, inputs, outputs, count) of the linear layers' products."""
    positions = batch.input_ids_BT.numel()
    everywhere = Counter((layer.inputs, layer.outputs) for layer in adaptable(model).values())
    vocabulary, hidden = model.get_output_embeddings().weight.shape  # type: ignore[operator]
    work = [(positions, inputs, outputs, count) for (inputs, outputs), count in everywhere.items()]
    return [*work, (batch.target_N.numel(), hidden, vocabulary, 1)]


def operations(model: nn.Module, batch: MicroBatch, *, weights: bool) -> int:
    """Operations in `products`; a multiply-add counts as two."""
    return sum(2 * n * i * o * count for n, i, o, count in shapes_of(model, batch)) * (3 if weights else 2)


def products(model: nn.Module, batch: MicroBatch, dtype: torch.dtype, *, weights: bool) -> Callable[[], None]:
    """The matrix products alone, on the batch's device. `weights`: also those for the weights' gradients."""
    made = partial(torch.randn, dtype=dtype, device=batch.input_ids_BT.device)
    operands = [(made(n, i), made(o, i), made(n, o), count) for n, i, o, count in shapes_of(model, batch)]

    def run() -> None:
        for x_NI, weight_OI, grad_NO, count in operands:
            for _ in range(count):
                _ = x_NI @ weight_OI.T
                _ = grad_NO @ weight_OI
                if weights:
                    _ = grad_NO.T @ x_NI

    return run


def square(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """Return (one large product, its number of operations)."""
    side = SQUARE[device.type]
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))

    def run() -> None:
        _ = left @ right

    return run, 2 * side**3


def finish(device: torch.device) -> None:
    """Wait for a card to finish: a call returns before its kernels have."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    work: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (median seconds of each, measured alternately after a warm-up round; on a card the peak GiB of each)."""
    seconds: Seconds = {name: [] for name in work}
    peaks = {}
    for turn in range(rounds + 1):
        for name, run in work.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            finish(device)
            start = time.perf_counter()
            run()
            finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30
    return {name: statistics.median(values) for name, values in seconds.items()}, peaks


def show_profile(run: Callable[[], None], device: torch.device) -> None:
    """Print where one pass spends its time; on a card, the time of its kernels."""
    kinds = torch.profiler.ProfilerActivity
    on_card = device.type == "cuda"
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if on_card else [])]) as profiler:
        run()
        finish(device)
    key = "self_cuda_time_total" if on_card else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20))


def config_of(model: str, dtype: str, method: str, rank: int, overrides: Sequence[str]) -> Config:
    settings = [f"model.name={model}", f"model.dtype={dtype}", f"method={method}", f"lora.rank={rank}", "optim.lr=1e-6"]
    return load_config("quickstart.yaml", [*settings, *overrides])


def main(
    model: Annotated[str, typer.Option(help="Directory, hub id, or `embedded`.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 1,
    sequences: Annotated[int, typer.Option(help="Completions of the micro-batch.")] = 16,
    group: Annotated[int, typer.Option(help="Completions that share a prompt; 1 for none.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 47,
    completion: Annotated[int, typer.Option(help="Tokens of each completion.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 5,
    profile: Annotated[bool, typer.Option(help="Also profile one LoRA pass with torch's profiler.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Settings of the learner.")
    ] = None,
) -> None:
    """Time LoRA, full fine-tuning and the matrix products alternately."""
    warnings.simplefilter("ignore")
    ranks = join_ranks()
    lora = Learner(config_of(model, dtype, "lora", rank, overrides or ()), ranks, 0)
    if lora.is_worth_compiling:
        lora.compile_layers([range(prompt)])
    full = Learner(config_of(model, dtype, "full", rank, overrides or ()), ranks, 0)
    meta_model = load_meta_model(ModelConfig(name=model))
    batch = micro_batch(sequences, group, prompt, completion, meta_model.config.vocab_size, lora.layout).to(
        ranks.device
    )
    one_product, of_one = square(ranks.device, DTYPES[dtype])
    seconds, peaks = timed(
        {
            "LoRA": pass_of(lora, batch),
            "full": pass_of(full, batch),
            "products of LoRA": products(meta_model, batch, DTYPES[dtype], weights=False),
            "products of full": products(meta_model, batch, DTYPES[dtype], weights=True),
            SQUARE_PRODUCT: one_product,
        },
        rounds,
        ranks.device,
    )
    if profile:
        show_profile(pass_of(lora, batch), ranks.device)
    tokens = sequences * (prompt + completion)
    rate = of_one / seconds.pop(SQUARE_PRODUCT)
    table = Table("", "seconds", "tokens/s", "share of the bound", "MFU", *(["GiB"] if peaks else []))
    for name, value in seconds.items():
        share = seconds.get(f"products of {name}", value) / value
        used = operations(meta_model, batch, weights=name.endswith("full")) / value / rate
        peak = [f"{peaks[name]:.1f}"] if peaks else []
        table.add_row(name, f"{value:.4f}", f"{tokens / value:,.0f}", f"{share:.2f}", f"{used:.2f}", *peak)
    device = torch.cuda.get_device_name(ranks.device) if peaks else "CPU"
    print(f"{model}, {dtype}, {tokens:,} tokens; {device}, one product {rate / 1e12:.3g} TFLOP/s")
    Console().print(table)
    sizes = adaptable(meta_model).values()
    theory = sum(2 * s.inputs * s.outputs + 3 * rank * (s.inputs + s.outputs) for s in sizes) / sum(
        3 * s.inputs * s.outputs for s in sizes
    )
    print(f"LoRA over full {seconds['LoRA'] / seconds['full']:.3f}, multiplications of the linear layers {theory:.3f}")
    print(f"LoRA learner to matrix products ratio {seconds['products of LoRA'] / seconds['LoRA']:.3f}")
    leave_ranks()


if __name__ == "__main__":
    typer.run(main)
