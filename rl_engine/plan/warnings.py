"""A planned run → warnings in plain words: one small function for each known problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rl_engine.config import Config
from rl_engine.config.starts import STARTS
from rl_engine.plan.capacity import Capacity
from rl_engine.plan.learning_rate import (
    ALPHA,
    LORA_RATIO,
    REFERENCE_HIDDEN,
    RL_COMPLETIONS,
    RL_HIGHEST,
    RL_LOWEST,
)
from rollout.work_items import piece_size, pieces_of

# Updates between sampling and learning above which an unbounded ratio gets a warning. At two, measured here, training
# is as good as on policy (docs/cluster.md).
MANY_UPDATES = 4
MANY_STALE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """What the warnings are based on."""

    config: Config
    rate: float
    """The learning rate of the run."""
    hidden: int
    context: int
    """Context length of the model."""
    groups: frozenset[str]
    """Kinds of layers that are trained."""
    capacity: Capacity
    below_rank: Mapping[str, int]
    """See `layers_below_rank`."""

    @property
    def is_lora(self) -> bool:
        return self.config.method == "lora"

    @property
    def has_no_rule(self) -> bool:
        """Whether no recipe's learning rate applies to this run."""
        return self.is_lora and self.config.lora.is_tiny


def batch_large_for_lora(run: PlannedRun) -> str | None:
    config = run.config
    episodes = config.completions_per_step // config.learner.updates_per_step
    if not run.is_lora or episodes <= RL_COMPLETIONS:
        return None
    return (
        f"{episodes:,} completions per update are more than in any recipe here ({RL_COMPLETIONS:,}). LoRA loses more "
        "than full fine-tuning as the batch grows, and a higher rank does not help: prefer more steps of fewer "
        "problems"
    )


def rate_of_the_other_method(run: PlannedRun) -> str | None:
    """The recipes' range is for 8B models. Small models take higher rates, so they are only warned about low ones."""
    bounds = f"{RL_LOWEST:g} … {RL_HIGHEST:g}"
    if run.has_no_rule:
        return None
    if run.is_lora and run.rate < RL_LOWEST:
        return (
            f"optim.lr {run.rate:g} is below the range of LoRA ({bounds}), as if copied from full fine-tuning: LoRA "
            f"wants about {LORA_RATIO} times that"
        )
    if run.hidden < REFERENCE_HIDDEN:
        return None
    if run.is_lora and run.rate > RL_HIGHEST:
        return f"optim.lr {run.rate:g} is above the range of reinforcement learning with LoRA ({bounds})"
    if not run.is_lora and run.rate > RL_HIGHEST / LORA_RATIO:
        return (
            f"optim.lr {run.rate:g} is a LoRA rate: full fine-tuning needs about a tenth, at most "
            f"{RL_HIGHEST / LORA_RATIO:g}"
        )
    return None


def alpha_moved(run: PlannedRun) -> str | None:
    alpha = run.config.lora.alpha
    if not run.is_lora or run.has_no_rule or alpha == ALPHA:
        return None
    return (
        f"lora.alpha is {alpha:g}, and the rates are for {ALPHA:g}: the first updates are {alpha / ALPHA:.3g} times as "
        "large as they would be"
    )


def attention_alone(run: PlannedRun) -> str | None:
    if not run.is_lora or "mlp" in run.groups or "attention" not in run.groups:
        return None
    return (
        f"lora.targets {run.config.lora.targets!r} leaves out the MLPs, where LoRA gains most: attention alone is "
        "worse at the same number of parameters; use all"
    )


def decomposed_start(run: PlannedRun) -> str | None:
    start = run.config.lora.init
    if not run.is_lora or STARTS[start].served != "converted":
        return None
    return (
        f"lora.init {start} starts from a decomposition of the weights: such adapters are reported to collapse under "
        "reinforcement learning at the rate of a plain LoRA"
    )


def too_small_for_the_run(run: PlannedRun) -> str | None:
    capacity = run.capacity
    if not run.is_lora or capacity.information_bits <= capacity.bits:
        return None
    enough = "no rank up to 512" if capacity.rank is None else f"rank {capacity.rank}"
    lora = run.config.lora
    own = f"rank {lora.rank}"
    if lora.is_tiny:
        own, enough = f"lora.numbers {lora.numbers}", f"of plain adapters {enough}"
    return f"the run may teach {capacity.share:.1f} times what {own} can hold; {enough} holds it all"


def rank_above_a_layer(run: PlannedRun) -> str | None:
    if not run.below_rank:
        return None
    path, side = min(run.below_rank.items(), key=lambda layer: layer[1])
    return (
        f"the rank is higher than {len(run.below_rank)} layers are wide ({path} has {side} at its smaller side): an "
        f"update cannot use more, so give lora.rank={side}, or those layers less in lora.rank_pattern"
    )


def reinforce_moves_on(run: PlannedRun) -> str | None:
    updates = run.config.learner.updates
    if run.config.loss.name != "reinforce" or updates == 1:
        return None
    return (
        f"loss.name reinforce makes {updates} updates from a step's completions without correcting for their age: "
        "after the first they come from an older policy; use loss.name=importance_sampling or ppo_clip"
    )


def ratio_without_bounds(run: PlannedRun) -> str | None:
    """The ratios spread with each update since the tokens were sampled, and nothing bounds them."""
    loss, updates, staleness = run.config.loss, run.config.learner.updates, run.config.rollout.max_staleness
    if loss.name != "importance_sampling" or loss.correction != "none":
        return None
    if updates <= MANY_UPDATES and staleness <= MANY_STALE:
        return None
    many = f"{updates} updates a step" if updates > MANY_UPDATES else f"rollout.max_staleness {staleness}"
    return (
        f"loss.name importance_sampling has no bound on its ratio, and with {many} the policy moves far from the one "
        "that sampled: single tokens may then decide an update (ratio/ess_frac); use ppo_clip or cispo, or "
        "loss.sampler_correction=token_truncate"
    )


def longer_than_the_context(run: PlannedRun) -> str | None:
    data, sampling = run.config.data, run.config.sampling
    if run.config.longest_sequence <= run.context:
        return None
    return (
        f"a prompt of {data.max_prompt_tokens:,} and a completion of {sampling.max_tokens:,} tokens are longer than "
        f"the model's context of {run.context:,}: lower data.max_prompt_tokens or sampling.max_tokens"
    )


def idle_workers(run: PlannedRun) -> str | None:
    config, rollout = run.config, run.config.rollout
    if rollout.placement != "ray" or rollout.workers == "max":
        return None
    step, piece = config.train.problems_per_step, config.training_piece
    # While the learner waits for a step, prompts requested ahead of it are being sampled too.
    pieces = pieces_of(step, piece) * (1 + rollout.max_staleness)
    if pieces >= rollout.workers:
        return None
    idle = f"{rollout.workers - pieces:,} of rollout.workers {rollout.workers:,} have nothing to sample"
    if piece > piece_size(step, rollout.workers):
        return (
            f"{idle}: a step's {step:,} prompts are handed out {piece} at a time (rollout.prompts_per_piece), and auto "
            f"would be {piece_size(step, rollout.workers)}"
        )
    return f"{idle}: raise train.problems_per_step, which is {step:,}, or lower rollout.workers"


WARNINGS: dict[str, Callable[[PlannedRun], str | None]] = {
    "batch": batch_large_for_lora,
    "rate": rate_of_the_other_method,
    "alpha": alpha_moved,
    "targets": attention_alone,
    "init": decomposed_start,
    "capacity": too_small_for_the_run,
    "rank": rank_above_a_layer,
    "reinforce": reinforce_moves_on,
    "ratio": ratio_without_bounds,
    "context": longer_than_the_context,
    "workers": idle_workers,
}
"""Name → function that returns the warning's text, or None if there is nothing to warn about."""


def warnings_of(run: PlannedRun) -> dict[str, str]:
    """The warnings that apply, by name."""
    texts = {name: warn(run) for name, warn in WARNINGS.items()}
    return {name: text for name, text in texts.items() if text is not None}
