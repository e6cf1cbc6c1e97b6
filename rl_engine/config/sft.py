"""What a supervised run can be told: its frozen configuration. Imports neither torch nor trl.

Sections and names are those of `rl_engine.config` wherever they mean the same. `method` is the only key that differs
between the two arms of a comparison.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from rl_engine.config.file import CommandConfig
from rl_engine.config.lora import LoraConfig, refuse_unknown_rate
from rl_engine.config.optim import OptimConfig
from rl_engine.config.run import LogConfig, Method
from rl_engine.config.starts import STARTS
from rollout.config import TASK, TASK_SETTINGS, ModelConfig, PromptConfig, Section


class ChatColumnsConfig(Section):
    """Which column of a source is what; unset ones follow the source."""

    messages: str | None = Field(None, description="Column of the turns, `role`/`content` or `from`/`value`.")
    prompt: str | None = Field(None, description="Column of the question, where there are no turns.")
    completion: str | None = Field(None, description="Column of the answer to it.")


class SumsConfig(Section):
    """Worked and unworked sums: what the embedded model is made of."""

    terms: tuple[Annotated[int, Field(ge=2, le=20)], ...] = Field(
        (2, 3, 4, 5, 6), min_length=1, description="Numbers in an expression, drawn evenly from these."
    )
    largest: int = Field(20, ge=1, description="Largest number in an expression.")
    direct_share: float = Field(0.65, ge=0, le=1, description="Share answered at once; the others line by line.")


class PairsConfig(Section):
    """Random keys and values: nothing can be learned from them but themselves."""

    count: int = Field(1024, ge=1, description="Pairs.")
    key_length: int = Field(8, ge=1, description="Characters of a key.")
    value_length: int = Field(16, ge=1, description="Characters of a value, drawn evenly and independently.")
    alphabet: str = Field("0123456789", min_length=2, description="The characters.")

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
        description="`tulu3`, `openthoughts3`, `file` (`jsonl`), `hub`, `reasoning_gym`, `arithmetic` or "
        "`random_pairs`."
    )
    path: str | None = Field(
        None, description="File read in place of the hub data set, in any format that `rl_engine.train` reads."
    )
    test_path: str | None = Field(None, description="File to test on; without, rows are set apart.")
    name: str | None = Field(None, description="`source: hub` only: the data set, ORG/NAME.")
    subset: str | None = Field(None, description="`source: hub` only: which of the data set's configurations.")
    split: str | None = Field(
        None, description="Of a hub data set, or of a directory that holds several; `train` when absent."
    )
    revision: str | None = Field(None, description="`source: hub` only: commit, tag or branch; the newest when absent.")
    task: str | None = Field(None, description=TASK)
    task_settings: dict[str, JsonValue] = Field({}, description=TASK_SETTINGS)
    columns: ChatColumnsConfig = ChatColumnsConfig()
    arithmetic: SumsConfig = SumsConfig()
    random_pairs: PairsConfig = PairsConfig()
    chat_template: str | None = Field(
        None, description="Jinja file, or `tulu`, in place of the model's own chat template: base models have none."
    )
    seed: int = Field(0, ge=0, description="Of the choice of rows, which is the same whatever the run's seed.")
    limit: int | None = Field(None, ge=1, description="Training examples; all when absent.")
    test_size: int = Field(256, ge=0, description="Test examples, at most.")
    shuffle: bool = Field(True, description="Shuffle the training examples anew each epoch, from the run's seed.")
    max_tokens: int = Field(2048, ge=2, description="Longer examples are dropped, with a count; packed rows' length.")
    packing: bool = Field(False, description="Put examples end to end into rows of up to `max_tokens`.")


class SftPromptConfig(PromptConfig):
    instruction: str | None = Field(None, description="Sentence after each question; null for none.")


class SftTrainConfig(Section):
    steps: int | None = Field(None, ge=1, description="Optimizer steps of the run.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training examples, in place of `steps`.")
    batch_size: int = Field(32, ge=1, description="Sequences of an optimizer step; packed rows with `data.packing`.")
    microbatch_size: int | None = Field(None, ge=1, description="Sequences of one forward and backward; all if absent.")
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        "sdpa", description="flash_attention_2 needs CUDA and flash-attn, and makes packing fast."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("train.steps and train.epochs: give one of the two")
        if self.batch_size % self.microbatch:
            raise ValueError(
                f"train.microbatch_size is {self.microbatch}: it must divide train.batch_size ({self.batch_size})"
            )
        return self

    @property
    def microbatch(self) -> int:
        return self.microbatch_size or self.batch_size


class SftEvalConfig(Section):
    """The test log loss is measured before the first step, after the last, and:"""

    every: int = Field(0, ge=0, description="Steps between measurements of the test log loss; 0 for none between.")
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Further steps after which it is measured.")


class SftCheckpointConfig(Section):
    every: int = Field(0, ge=0, description="Steps between checkpoints; 0 for one only when the run is stopped.")
    keep: int = Field(1, ge=1, description="Checkpoints kept; the newest ones.")


class SftLogConfig(LogConfig):
    every: int = Field(1, ge=1, description="Steps between lines of metrics.jsonl.")


class SftConfig(CommandConfig):
    """One supervised run."""

    module: ClassVar[str] = "rl_engine.sft"

    seed: int = Field(0, ge=0, description="Of the adapter and the order of examples.")
    output_dir: str = Field(description="Where the run is kept; `runs/<config name>` when not given.")
    method: Method = Field("lora", description="What is trained: an adapter, or every weight.")
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
            raise ValueError(f"lora.init {self.lora.init} looks at the prompts of reinforcement learning: take default")
        refuse_unknown_rate(self.lora, self.optim.lr, self.method)
        return self
