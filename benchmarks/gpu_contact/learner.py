"""Stage D: forward and backward passes of one micro-batch with random weights: tokens/s, MFU, peak memory.

All arms run in one process, one after another with the card to themselves, because importing the libraries takes longer
than an arm. So does building a learner, so consecutive arms that differ only in their rows share one. Completion
lengths range from three quarters of the width to all of it, similar to sampled ones: rows of equal length would hide
the cost of padding and masks. FLOPs are the model's (`rl_engine/plan/flops.py`); what checkpointing recomputes counts
once. MFU is relative to the matrix product measured before in the same process. The peak covers the passes and one
update after them. On a card, torch's profiler examines one more pass: the number of kernels launched and their total
time, which shows whether the card waits for launches.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
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
CHECKPOINTING = "learner.gradient_checkpointing=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to compute the micro-batch."""

    settings: tuple[str, ...] = ()
    """Settings of the learner, on top of a run's defaults."""
    mask: str = "as it is"
    """Attention mask of padded rows, one of MASKS."""
    times: int = 1
    """Rows of the micro-batch, in multiples of `Sizes.rows`."""
    compiled: bool = True
    """Whether layers are compiled where a run would compile them. Runs have no setting for this; here it is
    measured."""
    shape: int = 0
    """Index into `Sizes.shapes`."""
    group: bool = False
    """Whether all rows share one prompt, a quarter as long as the longest row."""

    def shares_learner(self, other: Arm | None) -> bool:
        """Whether the learner built for `other` can compute this arm too."""
        return other is not None and replace(other, mask=self.mask, times=self.times, group=self.group) == self


# Most valuable first.
ARMS: dict[str, Arm] = {
    "rank 1": Arm(),
    "rank 1, twice the rows": Arm(times=2),
    "rank 1, one long prompt": Arm(group=True),
    "rank 1, layers not compiled": Arm(compiled=False),
    "7B: rank 1": Arm(shape=1),
    "rank 32": Arm(settings=("lora.rank=32",)),
    "rank 1, checkpointing": Arm(settings=(CHECKPOINTING,)),
    "full, checkpointing": Arm(settings=("method=full", CHECKPOINTING)),
    "rank 1, one long prompt, shared": Arm(settings=("learner.layout=shared_prompt",), group=True),
    "rank 1, padded, no mask": Arm(settings=("learner.layout=padded",), mask="none"),
    "rank 1, padded, mask": Arm(settings=("learner.layout=padded",), mask="given"),
}


def samples_of(sizes: Sizes, vocabulary: int, *, group: bool = False) -> list[Any]:
    """Random completions, longest first, each after its own short prompt or all after one long prompt."""
    import torch

    from rl_engine.learner.batching import TrainingSample

    draw = torch.Generator().manual_seed(0)
    samples: list[TrainingSample] = []
    prompt = max(PROMPT, sizes.width // 4) if group else PROMPT
    for row in range(sizes.rows):
        shorter = (1 - SHORTEST) * row / max(1, sizes.rows - 1)
        length = round(sizes.width * (1 - shorter))
        tokens = tuple(torch.randint(3, vocabulary, (length,), generator=draw).tolist())
        completion = tokens[prompt:]
        samples.append(
            TrainingSample(
                prompt_ids=samples[0].prompt_ids if group and samples else tokens[:prompt],
                completion_ids=completion,
                behaviour_logprobs=(-3.0,) * len(completion),
                advantage=1.0 if row % 2 else -1.0,
                weight=1 / (sizes.rows * sizes.width),
            )
        )
    return samples


def masked(batch: Any, mask: str) -> Any:
    """The micro-batch of padded rows with an attention mask, or without: padding is on the right, where causal
    attention does not look."""
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


def model_flops(samples: list[Any], meta_model: Any, config: Any) -> float:
    """FLOPs of one pass over the samples, counting each prompt as often as it occurs."""
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
    """Start a run's learner, but with random weights instead of weights read from disk."""
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
    """Peak memory allocated on the card since the last arm, in GiB."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def kernels_of(run: Callable[[], None]) -> dict[str, float | None]:
    """The number of kernels launched on a card, and their total seconds."""
    import torch

    if not torch.cuda.is_available():
        return {"kernels": None, "kernel_s": None}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    found = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    return {"kernels": len(found), "kernel_s": sum(event.self_device_time_total for event in found) / 1e6}


def build(arm: Arm, directory: Path, sizes: Sizes, vocabulary: int) -> Any:
    """Build an arm's learner, with layers compiled where a run would compile them."""
    import torch._dynamo

    from rl_engine.policy.compiled_layers import NotCompiledWarning

    learner = start_learner(directory, sizes, [*arm.settings])
    torch._dynamo.reset()
    if arm.compiled and learner.is_worth_compiling:
        with warnings.catch_warnings():
            # An arm that silently runs uncompiled must not be reported.
            warnings.simplefilter("error", NotCompiledWarning)
            learner.compile_layers([samples_of(sizes, vocabulary)[0].prompt_ids])
    return learner


class NoGradientError(RuntimeError):
    """The timed passes computed nothing that could be learned from."""


def check_learns(learner: Any) -> None:
    """Raise `NoGradientError` if the passes left no gradient: then they are not what a training step does."""
    import torch

    kept = [parameter.grad for parameter in learner.parameters.values() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(kept))
    if not norm > 0:
        raise NoGradientError(f"the passes leave a gradient of {norm:g}")


def measure(arm: Arm, learner: Any, sizes: Sizes, vocabulary: int) -> dict[str, Any]:
    """Measure one arm."""
    from benchmarks.learner import pass_of
    from rl_engine.learner.batching import collate
    from rl_engine.policy.base_model import load_meta_model

    samples = samples_of(sizes, vocabulary, group=arm.group) * arm.times
    batch = masked(collate(samples, 0, learner.layout), arm.mask).to(learner.ranks.device)
    flops = model_flops(samples, load_meta_model(learner.config.model), learner.config)
    product = product_flops(sizes.product, sizes.dtype, sizes.rounds)
    run = pass_of(learner, batch)
    seconds = seconds_of(run, sizes.rounds)
    kernels = kernels_of(run)
    check_learns(learner)
    # Include an update, because Adam's moments are part of the peak.
    learner.deepspeed_engine.step()
    tokens = sum(sample.num_tokens for sample in samples)
    return {
        "layout": learner.layout,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / product,
        **kernels,
        "peak_gib": peak_gib(),
    }


def release() -> None:
    """Free unreferenced memory, and reset the peak statistics."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")]) -> None:
    """Measure every arm; one that does not fit into memory, or does not run as named, is reported and skipped."""
    import torch

    from rl_engine.learner.ranks import leave_ranks
    from rl_engine.policy.compiled_layers import NotCompiledWarning

    given = SIZES[sizes]
    learner, before = None, None
    with tempfile.TemporaryDirectory() as place:
        for name, arm in ARMS.items():
            model = list(given.shapes)[arm.shape]
            vocabulary = given.shapes[model]["vocab_size"]
            directory = Path(place) / model
            if not directory.exists():
                write_shape(directory, given.shapes[model], given.dtype)
            if not arm.shares_learner(before):
                learner = None
            before = arm
            release()
            try:
                learner = learner or build(arm, directory, given, vocabulary)
                figures = measure(arm, learner, given, vocabulary)
            except (torch.OutOfMemoryError, NotCompiledWarning, NoGradientError) as error:
                learner = None
                note("left out", arm=name, why=str(error).splitlines()[0])
                continue
            note("learner", model=model, arm=name, **figures)
    leave_ranks()


if __name__ == "__main__":
    typer.run(main)
