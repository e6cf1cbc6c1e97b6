"""Stage D: forward and backward passes of one micro-batch, random weights in memory: tokens/s, MFU, peak memory.

One arm a process, so that each has the card to itself. Completions have lengths from three quarters of the width to all
of it, as sampled ones do: rows of one length would hide what padding and a mask cost. FLOP are those of the model
(`rl_engine/plan/flops.py`); what checkpointing computes twice counts once. Their share is of the product that the same
process measured before. The peak is that of the passes and of an update after them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.machine import product_flops, seconds_of
from benchmarks.gpu_contact.sizes import SIZES, Sizes
from benchmarks.gpu_contact.weights import random_model, write_shape

PROMPT = 16
SHORTEST = 0.75
MASKS = ("as it is", "given", "none")


def samples_of(sizes: Sizes, vocabulary: int) -> list[Any]:
    """Random completions, the longest first."""
    import torch

    from rl_engine.learner.batching import TrainingSample

    draw = torch.Generator().manual_seed(0)
    samples = []
    for row in range(sizes.rows):
        shorter = (1 - SHORTEST) * row / max(1, sizes.rows - 1)
        length = round(sizes.width * (1 - shorter))
        tokens = tuple(torch.randint(3, vocabulary, (length,), generator=draw).tolist())
        completion = tokens[PROMPT:]
        samples.append(
            TrainingSample(
                prompt_ids=tokens[:PROMPT],
                completion_ids=completion,
                behaviour_logprobs=(-3.0,) * len(completion),
                advantage=1.0 if row % 2 else -1.0,
                weight=1 / (sizes.rows * sizes.width),
            )
        )
    return samples


def masked(batch: Any, mask: str) -> Any:
    """The micro-batch of padded rows with the mask that says where tokens are, or without one: padding is on the
    right, where causal attention does not look."""
    import torch

    if mask == "as it is":
        return batch
    if mask == "none":
        return replace(batch, attention_mask_BT=None)
    lengths_B = [int(length) + PROMPT for length in batch.mask_BC.sum(dim=1)]
    mask_BT = torch.zeros_like(batch.input_ids_BT)
    for row, length in enumerate(lengths_B):
        mask_BT[row, :length] = 1
    return replace(batch, attention_mask_BT=mask_BT)


def pass_of(learner: Any, batch: Any) -> Callable[[], None]:
    """One forward and backward pass, as a step makes it."""
    from rl_engine.learner.objective import objective

    def run() -> None:
        logprob_N, entropy_N = learner.deepspeed_engine(batch)
        part = objective(learner.config.loss, batch, batch.spread(logprob_N), batch.spread(entropy_N), None)
        learner.deepspeed_engine.backward(part.loss)

    return run


def model_flops(samples: list[Any], meta_model: Any, config: Any) -> float:
    """What one pass over the samples asks for, each prompt as often as it is there."""
    from rl_engine.plan.flops import MultiplyAdds, learning_flops
    from rl_engine.plan.sizes import Workload

    each = MultiplyAdds.of(meta_model, config.lora)
    works = (
        Workload(
            steps=1,
            groups=1,
            completions=1,
            prompt_tokens=len(sample.prompt_ids),
            completion_tokens=len(sample.completion_ids),
        )
        for sample in samples
    )
    return sum(learning_flops(each, work, prompts=1, method=config.method) for work in works)


def start_learner(directory: Path, sizes: Sizes, settings: list[str]) -> Any:
    """The learner of a run, but for the weights: they are drawn where a run reads them."""
    from rl_engine.command import join_ranks_quietly
    from rl_engine.config import load_config
    from rl_engine.learner.learner import Learner
    from rl_engine.policy import base_model
    from rollout.config import ModelConfig

    def drawn(model: ModelConfig, attention: str, dtype: Any = None) -> Any:
        return random_model(directory, attention, dtype or base_model.DTYPES[sizes.dtype])

    base_model.load_weights = drawn
    own = [
        f"model.name={directory}",
        f"model.dtype={sizes.dtype}",
        "optim.lr=1e-6",
        f"sampling.max_tokens={sizes.width}",
    ]
    ranks = join_ranks_quietly()
    return Learner(load_config("quickstart.yaml", [*own, *settings]), ranks, 0)


def peak_gib() -> float | None:
    """The most that was allocated on the card."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def main(
    sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")],
    shape: Annotated[str, typer.Option(help="Which of its models.")],
    arm: Annotated[str, typer.Option(help="What the arm is called.")],
    mask: Annotated[str, typer.Option(help=f"Of padded rows: one of {', '.join(MASKS)}.")] = "as it is",
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Of the learner.")] = None,
) -> None:
    """Measure one arm."""
    given = SIZES[sizes]
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / shape
        write_shape(directory, given.shapes[shape], given.dtype)
        learner = start_learner(directory, given, settings or [])
        from rl_engine.learner.batching import collate
        from rl_engine.learner.ranks import leave_ranks
        from rl_engine.policy.base_model import load_meta_model

        samples = samples_of(given, given.shapes[shape]["vocab_size"])
        batch = masked(collate(samples, 0, learner.layout), mask).to(learner.ranks.device)
        flops = model_flops(samples, load_meta_model(learner.config.model), learner.config)
        product = product_flops(given.product, given.dtype, given.rounds)
        seconds = seconds_of(pass_of(learner, batch), given.rounds)
        # An update too: Adam's moments are part of the peak.
        learner.deepspeed_engine.step()
        tokens = sum(sample.num_tokens for sample in samples)
        note(
            "learner",
            model=shape,
            arm=arm,
            layout=learner.layout,
            tokens=tokens,
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            tflops=flops / seconds / 1e12,
            mfu=flops / seconds / product,
            peak_gib=peak_gib(),
        )
        leave_ranks()


if __name__ == "__main__":
    typer.run(main)
