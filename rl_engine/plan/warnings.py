"""A planned run → warnings in plain words: one small function for each known problem."""

from __future__ import annotations

from collections.abc import Callable

from rl_engine.config.starts import STARTS
from rl_engine.plan.forecast import Forecast
from rl_engine.plan.learning_rate import (
    ALPHA,
    LORA_RATIO,
    REFERENCE_HIDDEN,
    RL_COMPLETIONS,
    RL_HIGHEST,
    RL_LOWEST,
)
from rl_engine.policy.lora.targets import layers_below_rank
from rollout.servable import context_length
from rollout.work_items import piece_size, pieces_of

# Updates between sampling and learning above which an unbounded ratio gets a warning. At two, measured here, training
# is as good as on policy (docs/cluster.md).
MANY_UPDATES = 4
MANY_STALE = 2


def batch_large_for_lora(made: Forecast) -> str | None:
    config = made.config
    episodes = config.completions_per_step // config.learner.updates_per_step
    if not made.is_lora or episodes <= RL_COMPLETIONS:
        return None
    return (
        f"{episodes:,} completions per update are more than in any recipe here ({RL_COMPLETIONS:,}). LoRA loses more "
        "than full fine-tuning as the batch grows, and a higher rank does not help: prefer more steps of fewer "
        "problems"
    )


def rate_of_the_other_method(made: Forecast) -> str | None:
    """The recipes' range is for 8B models. Small models take higher rates, so they are only warned about low ones."""
    bounds = f"{RL_LOWEST:g} … {RL_HIGHEST:g}"
    if made.rule is None:
        return None
    if made.is_lora and made.rate < RL_LOWEST:
        return (
            f"optim.lr {made.rate:g} is below the range of LoRA ({bounds}), as if copied from full fine-tuning: LoRA "
            f"wants about {LORA_RATIO} times that"
        )
    if made.text_config.hidden_size < REFERENCE_HIDDEN:
        return None
    if made.is_lora and made.rate > RL_HIGHEST:
        return f"optim.lr {made.rate:g} is above the range of reinforcement learning with LoRA ({bounds})"
    if not made.is_lora and made.rate > RL_HIGHEST / LORA_RATIO:
        return (
            f"optim.lr {made.rate:g} is a LoRA rate: full fine-tuning needs about a tenth, at most "
            f"{RL_HIGHEST / LORA_RATIO:g}"
        )
    return None


def alpha_moved(made: Forecast) -> str | None:
    alpha = made.config.lora.alpha
    if not made.is_lora or made.rule is None or alpha == ALPHA:
        return None
    return (
        f"lora.alpha is {alpha:g}, and the rates are for {ALPHA:g}: the first updates are {alpha / ALPHA:.3g} times as "
        "large as they would be"
    )


def attention_alone(made: Forecast) -> str | None:
    if not made.is_lora or "mlp" in made.groups or "attention" not in made.groups:
        return None
    return (
        f"lora.targets {made.config.lora.targets!r} leaves out the MLPs, where LoRA gains most: attention alone is "
        "worse at the same number of parameters; use all"
    )


def decomposed_start(made: Forecast) -> str | None:
    start = made.config.lora.init
    if not made.is_lora or STARTS[start].served != "converted":
        return None
    return (
        f"lora.init {start} starts from a decomposition of the weights: such adapters are reported to collapse under "
        "reinforcement learning at the rate of a plain LoRA"
    )


def too_small_for_the_run(made: Forecast) -> str | None:
    capacity = made.capacity
    if not made.is_lora or capacity.information_bits <= capacity.bits:
        return None
    enough = "no rank up to 512" if capacity.rank is None else f"rank {capacity.rank}"
    lora = made.config.lora
    own = f"rank {lora.rank}"
    if lora.is_tiny:
        own, enough = f"lora.numbers {lora.numbers}", f"of plain adapters {enough}"
    return f"the run may teach {capacity.share:.1f} times what {own} can hold; {enough} holds it all"


def rank_above_a_layer(made: Forecast) -> str | None:
    below = layers_below_rank(made.meta_model, made.config.lora) if made.is_lora else {}
    if not below:
        return None
    path, side = min(below.items(), key=lambda layer: layer[1])
    return (
        f"the rank is higher than {len(below)} layers are wide ({path} has {side} at its smaller side): an "
        f"update cannot use more, so give lora.rank={side}, or those layers less in lora.rank_pattern"
    )


def reinforce_moves_on(made: Forecast) -> str | None:
    updates = made.config.learner.updates
    if made.config.loss.name != "reinforce" or updates == 1:
        return None
    return (
        f"loss.name reinforce makes {updates} updates from a step's completions without correcting for their age: "
        "after the first they come from an older policy; use loss.name=importance_sampling or ppo_clip"
    )


def ratio_without_bounds(made: Forecast) -> str | None:
    """The ratios spread with each update since the tokens were sampled, and nothing bounds them."""
    loss, updates, staleness = made.config.loss, made.config.learner.updates, made.config.rollout.max_staleness
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


def longer_than_the_context(made: Forecast) -> str | None:
    data, sampling, context = made.config.data, made.config.sampling, context_length(made.text_config)
    if made.config.longest_sequence <= context:
        return None
    return (
        f"a prompt of {data.max_prompt_tokens:,} and a completion of {sampling.max_tokens:,} tokens are longer than "
        f"the model's context of {context:,}: lower data.max_prompt_tokens or sampling.max_tokens"
    )


def idle_workers(made: Forecast) -> str | None:
    config, rollout = made.config, made.config.rollout
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


WARNINGS: dict[str, Callable[[Forecast], str | None]] = {
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


def warnings_of(made: Forecast) -> dict[str, str]:
    """The warnings that apply, by name."""
    texts = {name: warn(made) for name, warn in WARNINGS.items()}
    return {name: text for name, text in texts.items() if text is not None}
