"""What is trained: the seam between the learner and the ways to change a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rl_engine.policy.micro_batch import MicroBatch

LogprobFunction = Callable[[MicroBatch], tuple[Tensor, Tensor]]
"""([N] log-probabilities, [N] entropies) of a micro-batch's completion tokens, in nats."""


class TrainablePolicy(Protocol):
    """A causal language model, which of its parameters learn, and how they are published."""

    causal_lm: Any
    parameters: dict[str, nn.Parameter]
    """What learns, float32, by the names it is published under."""
    has_base: bool
    """Whether the base model is at hand to be compared with."""

    def describe(self) -> str:
        """For people: what is trained, in numbers."""
        ...

    def param_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Every parameter that learns once, in groups: (multiple of `optim.lr`, parameters)."""
        ...

    def begin(self, passes: Iterator[Callable[[], Any]]) -> None:
        """Take the first values from another adapter, or from the model's activations in forward passes over the run's
        prompts, where the method asks for that; nothing otherwise. Not for a run that goes on from a checkpoint."""
        ...

    def as_base(self, policy: LogprobFunction) -> AbstractContextManager[LogprobFunction]:
        """Inside the block, what answers with log-probabilities under the base model. `policy` does under what is
        trained. Only where `has_base`."""
        ...

    def shard_base(self, shard: Callable[[nn.Module], Any]) -> None:
        """Let `shard` spread over the ranks what is kept of the base model besides what is trained."""
        ...

    def prepare_for_zero3(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """(module, parameter) pairs where a module's own forward pass reads a parameter of another."""
        ...

    def write(self, directory: Path, tensors: dict[str, Tensor]) -> None:
        """Write a version, from float32 tensors on the CPU, gathered from all ranks."""
        ...

    def manifest_entries(self) -> dict[str, Any]:
        """What the manifest says of every version."""
        ...
