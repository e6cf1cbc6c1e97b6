"""The frozen configuration of a run. Imports neither torch nor vllm.

The object made here is the one that is executed and the one that is saved with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from evals.suites import suite_name
from rewards import RewardConfig
from rl_engine.config.file import CommandConfig, read_config
from rl_engine.config.lora import LoraConfig, refuse_unknown_rate
from rl_engine.config.loss import LossConfig
from rl_engine.config.optim import OptimConfig
from rollout.config import (
    LARGEST_SEED,
    DataConfig,
    ModelConfig,
    PromptConfig,
    RolloutConfig,
    SamplingConfig,
    Section,
)
from rollout.work_items import piece_size

Method = Literal["lora", "full"]
CHECKPOINT_EVERY: dict[Method, int] = {"lora": 1, "full": 10}
"""Default number of steps between checkpoints: an adapter's take no time, a whole model's fill a disk."""


class LearnerConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What DeepSpeed shards across ranks. 0: nothing; 1: Adam's moments; 2: also gradients; 3: "
        "also parameters.",
    )
    offload_optimizer: bool = Field(
        False, description="Keep Adam's moments, and run its step, in host memory; needs zero_stage 1 or higher."
    )
    updates_per_step: int = Field(
        1,
        ge=1,
        description="Optimizer updates per step: the step's groups are split into this many parts, one update each.",
    )
    epochs_per_step: int = Field(
        1, ge=1, description="How many times to learn from a step's completions, with the same updates each time."
    )
    tokens_per_microbatch: int = Field(8192, ge=1, description="Padded tokens per forward and backward pass.")
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        "sdpa",
        description="Attention kernel of the learner, where prompts are not shared; flash_attention_2 needs "
        "CUDA and flash-attn.",
    )
    layout: Literal["auto", "shared_prompt", "padded", "packed"] = Field(
        "auto",
        description="How samples form a micro-batch: `padded` gives each sample a row, `packed` concatenates "
        "samples without padding, `shared_prompt` computes the prompt of a group once (on CUDA in bfloat16). auto, "
        "if the model's attention is plain: shared_prompt on a CPU for samples of at most 2,048 "
        "tokens, packed on CUDA in bfloat16; otherwise padded.",
    )
    gradient_checkpointing: bool = Field(False, description="Use less memory, for about a third more time.")

    @property
    def updates(self) -> int:
        """Optimizer updates per step, over all its epochs."""
        return self.updates_per_step * self.epochs_per_step

    @model_validator(mode="after")
    def _offload_is_of_shards(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3, not 0")
        return self


class TrainConfig(Section):
    steps: int = Field(ge=1, description="Number of steps in the run.")
    problems_per_step: int = Field(ge=1, description="Groups to learn from in each step.")
    max_problems_per_step: int | None = Field(
        None,
        ge=1,
        description="Dynamic sampling (DAPO): replace groups whose rewards are all equal, until this many "
        "problems have been sampled for the step; if unset, none are replaced.",
    )

    @model_validator(mode="after")
    def _limit_is_above(self) -> Self:
        if (self.max_problems_per_step or self.problems_per_step) < self.problems_per_step:
            raise ValueError(
                f"train.max_problems_per_step is {self.max_problems_per_step}; a step needs at least "
                f"train.problems_per_step ({self.problems_per_step})"
            )
        return self


class EvalConfig(Section):
    every: int = Field(10, ge=0, description="Steps between evaluations; 0 evaluates only before and after training.")
    at_start: bool = Field(True, description="Also evaluate before the first step.")
    suites: tuple[str, ...] = Field((), description="Names of suites, or files of problems.")
    best: str | None = Field(
        None, description="Suite that decides which adapter is kept as `adapters/best`; the first suite if unset."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first N problems of each suite.")
    n: int = Field(1, ge=1, description="Completions per problem.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample only from the most likely tokens that together hold this probability."
    )
    top_k: int | None = Field(
        None, ge=1, description="Sample only from this many of the most likely tokens; all if unset."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Sample only from tokens at least this fraction as likely as the most likely one."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Maximum length of a completion, in tokens; `sampling.max_tokens` if unset."
    )
    prompts_per_piece: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Like rollout.prompts_per_piece, for the problems of all suites, which are sampled together.",
    )
    data_dir: str | None = Field(
        None, description="Directory with the suites' JSON Lines files, read instead of the hub."
    )

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        names = [suite_name(name) for name in self.suites]
        if self.best is not None and self.best not in names:
            raise ValueError(f"eval.best is {self.best!r}; eval.suites has {', '.join(names) or 'none'}")
        return self

    @model_validator(mode="after")
    def _greedy_is_one(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"eval.n is {self.n} but eval.temperature 0 gives the same completion each time")
        return self


class CheckpointConfig(Section):
    every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; if unset, 1 for an adapter and 10 for `method: full`."
    )
    keep: int = Field(2, ge=1, description="How many checkpoints to keep; the newest are kept.")
    keep_adapters: int | None = Field(
        None,
        ge=2,
        description="How many published versions to keep; the newest are kept. If unset, all adapters, or 2 "
        "versions with `method: full`.",
    )


class LogConfig(Section):
    tensorboard: bool = Field(True, description="Write `tensorboard/` in the run directory.")
    wandb: str | None = Field(None, description="Weights & Biases project to log to.")
    trackio: str | None = Field(None, description="Trackio project to log to.")


class Config(CommandConfig):
    """One run."""

    module: ClassVar[str] = "rl_engine.train"

    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seeds the adapter, problem order and sampling.")
    output_dir: str = Field(min_length=1, description="Run directory; `runs/<config name>` if not given.")
    method: Method = Field("lora", description="What to train: an adapter (`lora`) or every weight (`full`).")
    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    rewards: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig
    loss: LossConfig = LossConfig()
    learner: LearnerConfig = LearnerConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest possible prompt and completion of a training step."""
        return self.data.max_prompt_tokens + self.sampling.max_tokens

    @property
    def completions_per_step(self) -> int:
        return self.train.problems_per_step * self.sampling.n

    @property
    def training_piece(self) -> int:
        """Prompts of a training step per work item of the pool."""
        given = self.rollout.prompts_per_piece
        return piece_size(self.train.problems_per_step, self.rollout.sharers) if given == "auto" else given

    def eval_piece(self, problems: int) -> int:
        """Prompts per work item for an evaluation with this many problems in all its suites."""
        given = self.eval.prompts_per_piece
        return piece_size(problems, self.rollout.sharers) if given == "auto" else given

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: a greedy group has no spread; give a value in (0, 2]")
        if self.sampling.n < 2:
            raise ValueError("sampling.n is 1: a group of one is its own baseline; give 2 or more")
        for key, value in self.sampling.truncation().items():
            raise ValueError(
                f"sampling.{key} is {value:g}: training on truncated samples is biased, because the sampler would "
                "never draw some tokens to which the policy gives a probability; leave it out here "
                f"(eval.{key} may truncate)"
            )
        if self.learner.updates_per_step > self.train.problems_per_step:
            raise ValueError(
                f"learner.updates_per_step is {self.learner.updates_per_step}, and a step has only "
                f"train.problems_per_step ({self.train.problems_per_step}) groups to split among them: give fewer"
            )
        return self

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> Self:
        refuse_unknown_rate(self.lora, self.optim.lr, self.method)
        if self.optim.warmup_steps >= self.train.steps and self.optim.warmup_steps:
            raise ValueError(
                f"optim.warmup_steps is {self.optim.warmup_steps}, and train.steps is {self.train.steps}: the learning "
                "rate would rise until the end; give fewer"
            )
        return self

    @model_validator(mode="after")
    def _can_be_placed(self) -> Self:
        rollout = self.rollout
        if rollout.placement == "inprocess":
            if rollout.max_staleness:
                raise ValueError(
                    f"rollout.max_staleness is {rollout.max_staleness}, and in process nothing is sampled while the "
                    "learner works: give rollout.placement=ray too, or leave it at 0"
                )
            return self
        if rollout.max_staleness and self.method == "full":
            raise ValueError(
                f"rollout.max_staleness is {rollout.max_staleness}, and with method=full each version replaces the one "
                "before it: leave it at 0, or use method=lora"
            )
        loss = self.loss
        if rollout.max_staleness and loss.correction == "none" and loss.name != "importance_sampling":
            raise ValueError(
                f"rollout.max_staleness is {rollout.max_staleness}, and loss.name {loss.name} without a "
                "loss.sampler_correction does not correct for samples of older versions: give one, such as "
                "loss.sampler_correction=token_truncate, or loss.name=importance_sampling"
            )
        return self

    @model_validator(mode="after")
    def _can_go_on(self) -> Self:
        rollout, limit = self.rollout, self.sampling.max_tokens
        if rollout.leg_tokens is None:
            return self
        if rollout.max_staleness < 2:
            raise ValueError(
                f"rollout.leg_tokens is {rollout.leg_tokens}, which needs rollout.max_staleness 2 or more (with "
                f"rollout.placement=ray), not {rollout.max_staleness}: raise it, or leave rollout.leg_tokens out"
            )
        if rollout.leg_tokens >= limit:
            raise ValueError(
                f"rollout.leg_tokens is {rollout.leg_tokens}: give fewer tokens than sampling.max_tokens ({limit}), or "
                "nothing is left to continue"
            )
        return self

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint.every or CHECKPOINT_EVERY[self.method]


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run: see `rl_engine.config.file.read_config`."""
    return read_config(Config, name, overrides)
