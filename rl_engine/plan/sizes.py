"""Configuration and model → the sizes that the rest is counted from: of a transformer, of a step, of the cards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rollout.models import said_of_layers

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """The sizes of a transformer that its activations, caches and matrix products are made of; where its layers differ,
    the largest."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of one token's feed-forward layers together: of all active experts where there are several."""
    vocabulary: int
    normed_heads: bool
    """Whether queries and keys pass through a norm of their own (Qwen3)."""

    @classmethod
    def of(cls, meta_model: nn.Module) -> Widths:
        text_config: Any = meta_model.config.get_text_config()  # type: ignore[operator, union-attr]

        def largest(name: str) -> Any:
            return max(said_of_layers(text_config, name), default=0)

        # Families without attention state none.
        heads = largest("num_attention_heads") or 1
        experts = largest("num_experts_per_tok") or largest("top_k_experts")
        dense = largest("intermediate_size") or 4 * text_config.hidden_size
        expert = largest("moe_intermediate_size") or dense
        return cls(
            hidden=text_config.hidden_size,
            layers=text_config.num_hidden_layers,
            heads=heads,
            kv_heads=largest("num_key_value_heads") or heads,
            head_dim=largest("head_dim") or text_config.hidden_size // heads,
            intermediate=experts * expert if experts else dense,
            vocabulary=text_config.vocab_size,
            normed_heads=any(name.endswith("q_norm") for name, _ in meta_model.named_modules()),
        )

    def kv_bytes(self, size: int) -> int:
        """Bytes of one token's keys and values, in a precision of `size` bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * size


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run passes through the model.

    Example: `Workload(steps=300, groups=32, completions=16, prompt_tokens=1024, completion_tokens=8192)`
    """

    steps: int
    groups: int
    """Prompts of a step."""
    completions: int
    """How many of each prompt."""
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, config: Config, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> Workload:
        """The run's completions, each at the given length or else at the longest allowed."""
        return cls(
            steps=config.train.steps,
            groups=config.train.problems_per_step,
            completions=config.sampling.n,
            prompt_tokens=prompt_tokens or config.data.max_prompt_tokens,
            completion_tokens=completion_tokens or config.sampling.max_tokens,
        )

    @property
    def episodes(self) -> int:
        """Completions of a step."""
        return self.groups * self.completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """GPUs of one kind.

    Example: `Devices(count=8, gib=80.0)`
    """

    count: int
    gib: float

    @classmethod
    def parse(cls, text: str) -> Devices:
        """`8x80` or `8x80GiB`. Raises `ConfigError` for anything else."""
        count, _, gib = text.lower().removesuffix("gib").partition("x")
        try:
            devices = cls(count=int(count), gib=float(gib))
        except ValueError as error:
            raise ConfigError(f"--devices: {text!r} is not COUNTxGIB, as in 8x80") from error
        if devices.count < 1 or not 0 < devices.gib < math.inf:
            raise ConfigError(f"--devices: {text!r}; expected a count of at least 1 and a memory above 0 GiB")
        return devices
