"""Two threads and one micro-batch large enough for both: a step is bit-identical, whichever thread is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner
from tests.helpers.batches import LOOSE

PROMPTS, SAMPLES = 8, 8


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def groups() -> list[TrainingSample]:
    """Completions of up to 44 random tokens that share their prompts."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 21, (count,), generator=generator).tolist())

    made = []
    for prompt in range(PROMPTS):
        prompt_ids = tokens(10 + prompt % 5)
        for index in range(SAMPLES):
            completion = tokens(5 + (prompt * SAMPLES + index) * 7 % 40)
            made.append(
                TrainingSample(
                    prompt_ids=prompt_ids,
                    completion_ids=completion,
                    behaviour_logprobs=(-2.5,) * len(completion),
                    advantage=0.5 * (-1.0) ** index,
                    weight=1 / 1000,
                )
            )
    return made


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.usefixtures("two_threads")
def test_a_step_is_bit_identical_each_time(make_learner: Callable[..., Learner], method: str) -> None:
    samples, found = groups(), []
    for _ in range(3):
        learner = make_learner(f"method={method}", "optim.lr=1e-3")
        learner.step([samples], LOOSE)
        found.append({name: tensor.clone() for name, tensor in learner.weights().items()})
    for again in found[1:]:
        assert [name for name in again if not torch.equal(again[name], found[0][name])] == []
