"""The frozen configuration of a supervised run. Imports neither torch nor trl.

Sections and keys have the names they have in `rl_engine.config` wherever they mean the same. In a comparison of LoRA
with full fine-tuning, `method` is the only key that differs between the arms.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl_engine.config.file import CommandConfig
from rl_engine.config.lora import LoraConfig, refuse_unknown_rate
from rl_engine.config.optim import OptimConfig
from rl_engine.config.run import LogConfig, Method
from rl_engine.config.starts import STARTS
from rollout.config import (
    LARGEST_SEED,
    HubName,
    HubRevision,
    HubSubset,
    ModelConfig,
    PromptConfig,
    Section,
    SplitName,
    TaskName,
    TaskSettings,
)
from rollout.prompts.problems import GENERATED


class ChatColumnsConfig(Section):
    """The role of each column of a source; unset roles follow the source."""

    messages: str | None = Field(
        None, description="Column that holds the conversation, as `role`/`content` or `from`/`value` turns."
    )
    prompt: str | None = Field(None, description="Column that holds the question, if there is no conversation.")
    completion: str | None = Field(None, description="Column that holds the answer to the question.")


class SumsConfig(Section):
    """Sums with and without working, on which the embedded model was trained."""

    terms: tuple[Annotated[int, Field(ge=2, le=20)], ...] = Field(
        (2, 3, 4, 5, 6), min_length=1, description="How many numbers an expression has, drawn uniformly from these."
    )
    largest: int = Field(20, ge=1, description="Largest number in an expression.")
    direct_share: float = Field(
        0.65, ge=0, le=1, description="Share of sums answered at once; the others are worked out line by line."
    )


class PairsConfig(Section):
    """Random keys and values, which can only be memorized."""

    count: int = Field(1024, ge=1, description="Number of pairs.")
    key_length: int = Field(8, ge=1, description="Length of a key, in characters.")
    value_length: int = Field(
        16, ge=1, description="Length of a value, in characters, each drawn uniformly and independently."
    )
    alphabet: str = Field("0123456789", min_length=2, description="Characters to draw from.")

    @model_validator(mode="after")
    def _keys_can_differ(self) -> Self:
        if len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError("data.random_pairs.alphabet holds a character twice")
        possible = len(self.alphabet) ** self.key_length
        if self.count > possible // 2:
            raise ValueError(
                f"data.random_pairs.count is {self.count}, with {possible} possible keys: at most half of them are "
                "taken; raise data.random_pairs.key_length"
            )
        return self


class SftDataConfig(Section):
    source: str = Field(
        description="`tulu3`, `openthoughts3`, `file` (alias `jsonl`), `hub`, `reasoning_gym`, `arithmetic` "
        "or `random_pairs`."
    )
    path: str | None = Field(
        None, description="File to read instead of the hub dataset, in any format that `rl_engine.train` reads."
    )
    test_path: str | None = Field(None, description="File of test examples; if unset, some training rows are held out.")
    name: HubName = None
    subset: HubSubset = None
    split: SplitName = None
    revision: HubRevision = None
    task: TaskName = None
    task_settings: TaskSettings = Field({})
    columns: ChatColumnsConfig = ChatColumnsConfig()
    arithmetic: SumsConfig = SumsConfig()
    random_pairs: PairsConfig = PairsConfig()
    chat_template: str | None = Field(
        None,
        description="Jinja file, or `tulu`, to use instead of the model's own chat template; base models have none.",
    )
    seed: int = Field(0, ge=0, description="Seeds the choice of rows, which does not depend on the run's seed.")
    limit: int | None = Field(None, ge=1, description="Number of training examples; all if unset.")
    test_size: int = Field(256, ge=0, description="Maximum number of test examples.")
    shuffle: bool = Field(True, description="Reshuffle the training examples every epoch, from the run's seed.")
    max_tokens: int = Field(
        2048, ge=2, description="Drop examples longer than this and report how many; also the length of packed rows."
    )
    packing: bool = Field(False, description="Concatenate examples into rows of up to `max_tokens`.")

    @property
    def is_endless(self) -> bool:
        """Whether it makes as many training examples as the run takes."""
        return self.limit is None and self.source in GENERATED


class SftPromptConfig(PromptConfig):
    instruction: str | None = Field(None, description="Sentence added after each question; null for none.")


class SftTrainConfig(Section):
    steps: int | None = Field(None, ge=1, description="Number of optimizer steps in the run.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training examples, instead of `steps`.")
    batch_size: int = Field(32, ge=1, description="Sequences per optimizer step; with `data.packing`, packed rows.")
    microbatch_size: int | None = Field(
        None, ge=1, description="Sequences per forward and backward pass; the whole batch if unset."
    )
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        "sdpa", description="Attention kernel; flash_attention_2 needs CUDA and flash-attn, and makes packing fast."
    )
    gradient_checkpointing: bool = Field(False, description="Use less memory, for about a third more time.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("train.steps and train.epochs: give one of the two, and null for the other")
        if self.batch_size % self.microbatch:
            raise ValueError(
                f"train.microbatch_size is {self.microbatch}: it must divide train.batch_size ({self.batch_size})"
            )
        return self

    @property
    def microbatch(self) -> int:
        return self.microbatch_size or self.batch_size


class SftEvalConfig(Section):
    """When to measure the test log loss, besides before the first step and after the last."""

    every: int = Field(
        0,
        ge=0,
        description="Steps between measurements of the test log loss; 0 measures it only before and after training.",
    )
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Additional steps after which to measure it.")


class SftCheckpointConfig(Section):
    every: int = Field(0, ge=0, description="Steps between checkpoints; 0 writes one only when the run is stopped.")
    keep: int = Field(1, ge=1, description="How many checkpoints to keep; the newest are kept.")


class SftLogConfig(LogConfig):
    every: int = Field(1, ge=1, description="Steps between lines in metrics.jsonl.")


class SftConfig(CommandConfig):
    """One supervised run."""

    module: ClassVar[str] = "rl_engine.sft"

    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seeds the adapter and the order of examples.")
    output_dir: str = Field(min_length=1, description="Run directory; `runs/<config name>` if not given.")
    method: Method = Field("lora", description="What to train: an adapter (`lora`) or every weight (`full`).")
    model: ModelConfig
    data: SftDataConfig
    prompt: SftPromptConfig = SftPromptConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig
    train: SftTrainConfig
    eval: SftEvalConfig = SftEvalConfig()
    checkpoint: SftCheckpointConfig = SftCheckpointConfig()
    log: SftLogConfig = SftLogConfig()

    @model_validator(mode="after")
    def _can_start(self) -> Self:
        if STARTS[self.lora.init].calibrated:
            raise ValueError(f"lora.init {self.lora.init} looks at the prompts of reinforcement learning: use default")
        refuse_unknown_rate(self.lora, self.optim.lr, self.method)
        return self
