"""The learner's passes over micro-batches never read a value: on a GPU each read waits for all queued work, and leaves
the GPU idle until more is queued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner

pytestmark = pytest.mark.engine

# Operations that return a Python number, or a tensor whose size depends on values.
READINGS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "repeat_interleave")


class Readings(TorchDispatchMode):
    """Records every operation inside the block that would have to wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        if by_mask or name.startswith(READINGS):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss", [(), ("loss.name=ppo_clip", "loss.kl_coef=0.1", "loss.entropy_coef=0.01"), ("loss.name=gspo",)]
)
def test_packed_rows_read_no_value_before_the_last_micro_batch(
    loss: tuple[str, ...], make_learner: Callable[..., Learner], samples: list[TrainingSample]
) -> None:
    learner = make_learner("learner.layout=packed", "learner.tokens_per_microbatch=60", *loss)
    learner.deepspeed_engine.train()
    statistics = learner._new_statistics(None)
    with Readings() as readings:
        learner._pass_over(samples, statistics, learn=True, measure=True)
    assert readings.found == []
    assert statistics.totals().tokens == sum(len(sample.completion_ids) for sample in samples)


def test_reading_a_value_is_noticed() -> None:
    values = torch.arange(3.0)
    with Readings() as readings:
        float(values[0])
        values[values > 1]
        values[torch.tensor([0, 1])]
    assert readings.found == ["_local_scalar_dense", "index"]
