"""What is trained: the interface between the learner and the training methods."""

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
    """A causal language model, which of its parameters are trained, and how they are published."""

    model: Any
    """The module to call: transformers' model, or PEFT's wrapper around it."""
    causal_lm: Any
    """transformers' model itself."""
    parameters: dict[str, nn.Parameter]
    """The trainable parameters, float32, by published name."""
    has_base: bool
    """Whether the base model is available for comparison."""

    def describe(self) -> str:
        """What is trained, in numbers, for the console."""
        ...

    def param_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Groups of (multiple of `optim.lr`, parameters) that contain every trainable parameter once."""
        ...

    def begin(self, passes: Iterator[Callable[[], Any]]) -> None:
        """Set the initial values, if the method takes them from another adapter or from the model's activations in
        `passes` (forward passes over the run's prompts). Not called for a run that resumes from a checkpoint."""
        ...

    def as_base(self, policy: LogprobFunction) -> AbstractContextManager[LogprobFunction]:
        """Give, inside the block, a function that computes log-probabilities under the base model; `policy` computes
        them under the trained one. Only if `has_base`."""
        ...

    def shard_base(self, shard: Callable[[nn.Module], Any]) -> None:
        """Use `shard` to distribute a separate copy of the base model, if there is one, over the ranks."""
        ...

    def prepare_for_zero3(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """(module, parameter) pairs in which the module's forward pass reads a parameter of another module."""
        ...

    def write(self, directory: Path, tensors: dict[str, Tensor], chat_template: str | None = None) -> None:
        """Write a version from float32 tensors on the CPU, gathered from all ranks. `chat_template`: the text of the
        one that it is trained with, if that is not the model's own."""
        ...

    def manifest_entries(self) -> dict[str, Any]:
        """What the manifest of every version says."""
        ...
