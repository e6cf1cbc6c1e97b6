"""Seconds of the learner's forward and backward pass for each way to lay out and attend to samples of unequal length.

    python -m benchmarks.learner_arms --model DIR_OR_HUB_ID [KEY.SUB=VALUE …]

`mask` is padded rows with an attention mask, as before masks were left out; `shared` computes the prompt of a group
once; `compiled` is packed rows with compiled decoder layers, as in a run on a card. Arms alternate, and medians are
compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.learner import config_of, pass_of, timed
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks, join_ranks, leave_ranks
from rl_engine.policy import micro_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to compute a micro-batch."""

    layout: str
    masked: bool = False
    compiled: bool = False


ARMS = {
    "mask": Arm(layout="padded", masked=True),
    "no mask": Arm(layout="padded"),
    "packed": Arm(layout="packed"),
    "shared": Arm(layout="shared_prompt"),
    "compiled": Arm(layout="packed", compiled=True),
}


def samples_of(sequences: int, group: int, prompt: int, completion: int, vocabulary: int) -> list[TrainingSample]:
    """Samples of random tokens. Each run of `group` samples shares a prompt; completions have from half of `completion`
    tokens to all of them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(completion / 2, completion, sequences).int().tolist()
    rows = torch.randint(3, vocabulary, (sequences, prompt + completion), generator=generator).tolist()
    return [
        TrainingSample(
            prompt_ids=tuple(rows[index - index % group][:prompt]),
            completion_ids=tuple(row[prompt : prompt + length]),
            behaviour_logprobs=(-3.0,) * length,
            advantage=1.0 if index % 2 else -1.0,
            weight=1 / (sequences * completion),
        )
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True))
    ]


def pass_by(arm: Arm, learner: Learner, ranks: Ranks, samples: list[TrainingSample]) -> Callable[[], None]:
    """A forward and backward pass over all samples, with a learner that has the arm's layout."""
    run = pass_of(learner, collate(samples, 0, learner.layout).to(ranks.device))
    if arm.compiled:
        if ranks.device.type != "cuda":
            raise typer.BadParameter("--arms compiled: the plain products of a CPU are not compiled, give it on a card")
        learner.compile_layers([samples[0].prompt_ids])

    def masked() -> None:
        with patch.object(micro_batch, "sees_padding", return_value=True):
            run()

    return masked if arm.masked else run


def main(
    model: Annotated[str, typer.Option(help="Directory, hub id, or `embedded`.")],
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    method: Annotated[str, typer.Option(help="lora or full.")] = "lora",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 1,
    sequences: Annotated[int, typer.Option(help="Completions of the micro-batch.")] = 16,
    group: Annotated[int, typer.Option(help="Completions of a prompt.")] = 8,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 47,
    completion: Annotated[int, typer.Option(help="Tokens of the longest completion; the shortest has half.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 5,
    arms: Annotated[str, typer.Option(help=f"Arms to measure, of {', '.join(ARMS)}.")] = "mask,no mask,packed",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Settings of the learner.")
    ] = None,
) -> None:
    """Time the arms alternately."""
    warnings.simplefilter("ignore")
    ranks = join_ranks()
    work = {}
    for name in arms.split(","):
        settings = [f"learner.layout={ARMS[name].layout}", *(overrides or ())]
        learner = Learner(config_of(model, dtype, method, rank, settings), ranks, 0)
        vocabulary = learner.trainable.causal_lm.config.get_text_config().vocab_size
        samples = samples_of(sequences, group, prompt, completion, vocabulary)
        work[name] = pass_by(ARMS[name], learner, ranks, samples)
    seconds, peaks = timed(work, rounds, ranks.device)
    tokens = sum(sample.num_tokens for sample in samples)
    table = Table(
        "", "seconds", "tokens/s", "peak GiB", title=f"{model}, {dtype}, {method}, {tokens:,} tokens without padding"
    )
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}", f"{tokens / value:,.0f}", f"{peaks[name]:.1f}" if peaks else "")
    Console().print(table)
    first, last = next(iter(seconds)), list(seconds)[-1]
    print(f"learner {first} to {last} ratio {seconds[first] / seconds[last]:.2f}")
    leave_ranks()


if __name__ == "__main__":
    typer.run(main)
