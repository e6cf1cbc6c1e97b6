"""A program: takes two learner steps for each of the given settings, and rank 0 saves the weights.

steps_of_learners.py OUTPUT_DIR RANKS NAME 'key.sub=value key.sub=value' …, with `--` before the next number of ranks.
Ranks are forks of this process, which loads the libraries once, and have variables as torchrun gives them to its own,
but each takes itself for alone on its machine.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 - every rank would load torch's compiler for it
import torch
from safetensors.torch import save_file

from rl_engine.config import load_config
from rl_engine.learner import learner as learner_module
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks, join_ranks, leave_ranks
from rl_engine.plan.card import settle_precision
from tests.helpers.batches import LOOSE
from tests.helpers.ports import meeting_place


def samples() -> list[TrainingSample]:
    """Twelve completions of random tokens, the same on every rank."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 21, (count,), generator=generator).tolist())

    made = []
    for index in range(12):
        completion = tokens(2 + index)
        made.append(
            TrainingSample(
                prompt_ids=tokens(4 + index % 5),
                completion_ids=completion,
                behaviour_logprobs=(-2.5,) * len(completion),
                advantage=(-1.0) ** index * (0.3 + 0.05 * index),
                weight=1 / 240,
            )
        )
    return made


def check_collectives(ranks: Ranks) -> None:
    """Check the collective operations with each rank contributing its own number."""
    numbers = list(range(ranks.count))
    mine = torch.tensor([float(ranks.rank), -float(ranks.rank)])
    assert ranks.broadcast([ranks.rank]) == [0]
    assert ranks.gather([ranks.rank]) == numbers
    assert ranks.sum(mine).tolist() == [sum(numbers), -sum(numbers)]
    assert ranks.max(mine).tolist() == [max(numbers), 0.0]
    assert ranks.agree(ranks.is_main)
    assert not ranks.agree(False)


def learn(output: Path, named_settings: list[str], launched: dict[str, str]) -> None:
    os.environ.update(launched)
    with mock.patch("socket.gethostname", return_value=f"machine-{launched['RANK']}"):
        ranks = join_ranks()
    assert os.environ.get("LOCAL_WORLD_SIZE") == ("1" if ranks.count > 1 else None)
    check_collectives(ranks)
    # Shard everything under ZeRO-3, including the smallest weights.
    learner_module.PERSISTENT_PARAMETERS = 0
    for name, settings in zip(named_settings[::2], named_settings[1::2], strict=True):
        given = load_config("quickstart.yaml", ["learner.tokens_per_microbatch=60", *settings.split()])
        config = settle_precision(given, ranks.device.type)
        learner = Learner(config, ranks, pad_id=0)
        # The second is taken with Adam's state of the first.
        for _ in range(2):
            twice = config.learner.updates_per_step == 2
            learner.step([samples()[:6], samples()[6:]] if twice else [samples()], LOOSE)
        weights = learner.weights()
        if ranks.is_main:
            save_file(weights, output / f"{name}.safetensors")
    leave_ranks()


def on_ranks(output: Path, count: int, named_settings: list[str]) -> None:
    """Run on `count` ranks. If one fails, the others would wait for it."""
    place = meeting_place(count)
    output.mkdir()
    context = multiprocessing.get_context("fork")
    launched = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **place} for rank in range(count)]
    ranks = [context.Process(target=learn, args=(output, named_settings, one), daemon=True) for one in launched]
    for rank in ranks:
        rank.start()
    while running := [rank for rank in ranks if rank.is_alive()]:
        wait([rank.sentinel for rank in running])
        if any(rank.exitcode for rank in ranks):
            sys.exit(f"on {count} ranks: {[rank.exitcode for rank in ranks]}")


if __name__ == "__main__":
    for words, (count, *named) in itertools.groupby(sys.argv[2:], lambda word: word != "--"):
        if words:
            on_ranks(Path(sys.argv[1]) / count, int(count), named)
