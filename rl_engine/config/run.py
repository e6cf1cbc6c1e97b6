"""What a run can be told: its frozen configuration. Imports neither torch nor vllm.

The object made here is the object that runs, and the one that is written beside the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from evals.suites import suite_name
from rewards import RewardConfig
from rl_engine.config.file import read_config
from rl_engine.config.starts import DORA, REFUSED, STARTS, served_rank
from rollout.config import DataConfig, ModelConfig, PromptConfig, RolloutConfig, SamplingConfig, Section

# Distances of the clipping bounds from a ratio of one, where `loss.clip_low` and `loss.clip_high` are not given. A loss
# that is not here has none.
CLIP_BOUNDS: dict[str, dict[str, float]] = {
    "ppo_clip": {"clip_low": 0.2, "clip_high": 0.2},
    "cispo": {"clip_high": 3.0},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
}


class LoraConfig(Section):
    rank: int = Field(1, ge=1, le=512, description="Rank of the update of each layer.")
    alpha: float = Field(32.0, gt=0, description="The update is (alpha / rank) · B·A.")
    targets: str | tuple[str, ...] = Field(
        "all",
        description="`all` linear layers, `mlp`, `attention`, each with `+lm_head` for the output embedding too, "
        "or names of layers.",
    )
    expert_rank: int | Literal["auto"] = Field(
        "auto",
        description="Mixture of experts: rank of each expert's update; auto is rank / active experts, at least 1.",
    )
    init: str = Field(
        "default",
        description=f"Where the adapter starts: {', '.join(STARTS)}. All but the SVD ones (pissa, olora) and eva start "
        "from values that know nothing of the model; docs/choosing.md.",
    )
    plus_ratio: float = Field(
        1.0, gt=0, le=1024, description="LoRA+: the rate of B is this many times `optim.lr`, the rate of A."
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank (rsLoRA) instead of alpha / rank.")
    dora: bool = Field(False, description="Not served by vLLM, so refused; the message says what to do instead.")
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=512)]] = Field(
        {}, description="Other ranks by name or path of layers, `{down_proj: 4}`; the first that fits counts."
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="Other alphas in the same way.")
    start_from: str | None = Field(
        None, description="Directory of an adapter to go on training, of this rank, alpha and targets."
    )

    @model_validator(mode="after")
    def _can_be_trained_and_served(self) -> Self:
        if self.dora:
            raise ValueError(DORA)
        if self.init not in STARTS:
            reason = REFUSED.get(self.init)
            known = f"known are {', '.join(STARTS)}"
            raise ValueError(f"lora.init is {self.init!r}: " + (f"not offered: {reason}" if reason else known))
        ranks = [self.rank, *self.rank_pattern.values()]
        if self.init == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError(f"lora.init orthogonal needs even ranks, not {', '.join(map(str, ranks))}")
        if served_rank(self) > 512:
            raise ValueError(f"lora.init {self.init} is served at rank {served_rank(self)}, and vLLM serves up to 512")
        if self.start_from is not None and self.init != "default":
            raise ValueError(f"lora.start_from says where the adapter starts: leave lora.init ({self.init}) out")
        return self


class OptimConfig(Section):
    lr: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        description="Constant learning rate of Adam; auto: by rule (docs/choosing.md), printed with its derivation."
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="Adam's decay rates of the two moments."
    )
    eps: float = Field(1e-12, gt=0, description="Far below any gradient: the loss's constant must not matter.")
    clip_norm: float = Field(0.0, ge=0, description="Largest gradient norm; 0 for no clipping.")

    @property
    def rate(self) -> float:
        """`lr` as a number: a run replaces auto before anything else (`rl_engine.plan.learning_rate.with_rate`)."""
        assert self.lr != "auto", "the rate has not been decided"
        return self.lr


class LossConfig(Section):
    name: Literal["importance_sampling", "reinforce", "ppo_clip", "cispo", "gspo"] = Field(
        "importance_sampling", description="Entry of `rl_engine.learner.losses.LOSSES`."
    )
    baseline: Literal["group_mean", "leave_one_out", "group_mean_std"] = Field(
        "group_mean", description="What a completion is compared with; the last also divides by the spread (GRPO)."
    )
    normalizer: Literal["constant", "tokens", "sequence"] = Field(
        "constant",
        description="What divides the step's sum of token losses: completions × max_tokens, the tokens of the step "
        "(DAPO), or each completion's own length and then the completions (GRPO).",
    )
    clip_low: float | None = Field(
        None, gt=0, lt=1, description="Ratios below 1 − clip_low are clipped (ppo_clip 0.2, gspo 3e-4 when absent)."
    )
    clip_high: float | None = Field(
        None, gt=0, description="Ratios above 1 + clip_high are (ppo_clip 0.2, cispo 3, gspo 4e-4 when absent)."
    )
    sampler_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        "none",
        description="Weigh the loss by learner/sampler probability, bounded, and take the loss's own ratio against "
        "the learner at the start of the step; with `none` that ratio is taken against the sampler.",
    )
    correction_min: float = Field(0.0, ge=0, lt=1, description="Smallest such weight left alone.")
    correction_max: float = Field(2.0, gt=1, description="Largest such weight left alone.")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL to the base model; 0 for none.")
    kl_penalty: Literal["k1", "k2", "k3", "advantage"] = Field(
        "k3", description="Estimator of the KL in the loss, or `advantage` to take log p/p_base off the advantages."
    )
    entropy_coef: float = Field(0.0, description="Weight of the entropy bonus; negative for a penalty.")

    def bounds(self) -> dict[str, float]:
        """Clipping bounds of the chosen loss, by the name of its argument."""
        return {key: getattr(self, key) or default for key, default in CLIP_BOUNDS.get(self.name, {}).items()}

    @model_validator(mode="after")
    def _bounds_belong_to_the_loss(self) -> Self:
        for key in ("clip_low", "clip_high"):
            if getattr(self, key) is not None and key not in CLIP_BOUNDS.get(self.name, {}):
                users = [name for name, bounds in CLIP_BOUNDS.items() if key in bounds]
                raise ValueError(f"loss.{key} has no meaning for {self.name}; it belongs to {', '.join(users)}")
        return self


class LearnerConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="What DeepSpeed shards over the ranks: nothing, Adam's moments, gradients too, parameters too."
    )
    offload_optimizer: bool = Field(
        False, description="Adam's moments and step in host memory; needs zero_stage 1 or more."
    )
    updates_per_step: int = Field(
        1,
        ge=1,
        description="Optimizer updates a step: its groups are dealt into so many parts, each learned from once.",
    )
    tokens_per_microbatch: int = Field(8192, ge=1, description="Padded tokens of one forward and backward.")
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        "sdpa",
        description="Of the learner, where prompts are not shared; flash_attention_2 needs CUDA and flash-attn.",
    )
    layout: Literal["auto", "shared_prompt", "padded", "packed"] = Field(
        "auto",
        description="How samples make a micro-batch: `shared_prompt` computes the prompt of a group once; `padded` "
        "gives each a row; `packed` puts them end to end, fast with flash_attention_2 alone. auto: on a CPU "
        "shared_prompt, where the model's attention allows it and samples have at most 2,048 tokens; else padded.",
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for about a third more time.")

    @model_validator(mode="after")
    def _offload_is_of_shards(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3, not 0")
        return self


class TrainConfig(Section):
    steps: int = Field(ge=1, description="Optimizer steps of the run.")
    problems_per_step: int = Field(ge=1, description="Groups learned from in each step.")
    max_problems_per_step: int | None = Field(
        None,
        ge=1,
        description="Dynamic sampling (DAPO): groups without signal are replaced by further ones until so many were "
        "sampled for a step; none are when absent.",
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
    every: int = Field(10, ge=0, description="Steps between evaluations; 0 for only before and after.")
    suites: tuple[str, ...] = Field((), description="Names of suites, or JSON Lines files of problems.")
    best: str | None = Field(
        None, description="Suite whose best adapter is kept as `adapters/best`; the first suite when absent."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first N problems of each suite.")
    n: int = Field(1, ge=1, description="Completions of each problem.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens that hold this share.")
    max_tokens: int | None = Field(None, ge=1, description="Longest completion; the training's when absent.")
    data_dir: str | None = Field(None, description="Directory with the suites' JSON Lines files, for no hub.")

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
    every: int = Field(10, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept; the newest ones.")
    keep_adapters: int | None = Field(
        None,
        ge=2,
        description="Published versions kept, the newest ones; when absent all adapters, and 2 of method full.",
    )


class LogConfig(Section):
    tensorboard: bool = Field(True, description="Write `tensorboard/` into the run's directory.")
    wandb: str | None = Field(None, description="Weights & Biases project.")
    trackio: str | None = Field(None, description="Trackio project.")


class Config(Section):
    """One run."""

    seed: int = Field(0, ge=0, description="Of the adapter, the order of problems and the completions.")
    output_dir: str = Field(description="Where the run is kept; `runs/<config name>` when not given.")
    method: Literal["lora", "full"] = Field("lora", description="What is trained: an adapter, or every weight.")
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

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0: a greedy group has no spread; give a value in (0, 2]")
        if self.sampling.n < 2:
            raise ValueError("sampling.n is 1: a group of one is its own baseline; give 2 or more")
        if self.learner.updates_per_step > self.train.problems_per_step:
            raise ValueError(
                f"learner.updates_per_step is {self.learner.updates_per_step}: more updates than "
                f"train.problems_per_step ({self.train.problems_per_step}) has groups to deal"
            )
        return self

    @model_validator(mode="after")
    def _can_be_placed(self) -> Self:
        rollout = self.rollout
        if rollout.placement == "inprocess":
            if rollout.max_staleness:
                raise ValueError(
                    f"rollout.max_staleness is {rollout.max_staleness}, and in process nobody samples while the "
                    "learner works: give rollout.placement=ray too, or leave it at 0"
                )
            if rollout.address is not None:
                raise ValueError(
                    f"rollout.address is {rollout.address!r}: give rollout.placement=ray too, or leave it out"
                )
            return self
        if self.method == "full":
            raise ValueError(
                "rollout.placement is ray, whose workers are sent adapters, not whole models: method=full needs "
                "rollout.placement=inprocess"
            )
        if rollout.max_staleness and self.loss.name == "reinforce" and self.loss.sampler_correction == "none":
            raise ValueError(
                f"rollout.max_staleness is {rollout.max_staleness}, and loss.name reinforce does not weigh a token by "
                "how likely it still is: give another loss, or loss.sampler_correction"
            )
        return self

    @model_validator(mode="after")
    def _can_go_on(self) -> Self:
        rollout, limit = self.rollout, self.sampling.max_tokens
        if rollout.leg_tokens is None:
            return self
        if rollout.max_staleness < 2:
            raise ValueError(
                f"rollout.leg_tokens is {rollout.leg_tokens}, and another version goes on with a completion only where "
                f"rollout.max_staleness is 2 or more (with rollout.placement=ray), not {rollout.max_staleness}: raise "
                "that, or leave rollout.leg_tokens out"
            )
        if rollout.leg_tokens >= limit:
            raise ValueError(
                f"rollout.leg_tokens is {rollout.leg_tokens}: give fewer tokens than sampling.max_tokens ({limit}), or "
                "nothing is left to go on with"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run: see `rl_engine.config.file.read_config`."""
    return read_config(Config, name, overrides)
