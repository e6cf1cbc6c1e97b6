"""A model's family and size, and a run's length → the learning rate to start from, with its derivation and sources.

This is what `optim.lr: auto` means. The other two rules need no code: α = 32 at every rank, so that the update is
scaled by 32/r, and a constant rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rl_engine.config import Config, Method
from rl_engine.config.sft import SftConfig

ALPHA = 32.0
"""LoRA Without Regret: with the factor α/r on B·A, one α and one rate serve every rank."""

# tinker-cookbook, hyperparam_utils.get_lr: fitted to supervised runs of Llama and Qwen models.
BASE_RATE = 5e-5
REFERENCE_HIDDEN = 2000
FAMILIES = {
    "llama": ("Llama", 0.781),
    "qwen2": ("Qwen", 0.0775),
    "qwen2_moe": ("Qwen", 0.0775),
    "qwen3": ("Qwen", 0.0775),
    "qwen3_moe": ("Qwen", 0.0775),
}
"""`model_type` in a model's config → (family, exponent of the hidden size)."""

# LoRA Without Regret: ratio of the best LoRA rate to the best rate of full fine-tuning.
LORA_RATIO, SHORT_LORA_RATIO = 10, 15
SHORT_RUN_STEPS = 100

# tinker-cookbook's recipes for reinforcement learning with LoRA. They train 8B models, whose hidden size is 4096; the
# one that starts at 4e-5 takes 57 steps of 128 problems × 16 completions.
RL_RATE, RL_LOWEST, RL_HIGHEST = 4e-5, 1e-5, 8e-5
RL_HIDDEN = 4096
RL_COMPLETIONS = 128 * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A learning rate and its derivation.

    Example: `Rate(value=4e-5, derivation=("4e-05: where reinforcement learning with LoRA starts …",))`
    """

    value: float
    derivation: tuple[str, ...]
    """Sentences for the user, each with its source."""

    def describe(self) -> str:
        return f"{self.value:.3g}: " + "; ".join(self.derivation)


def learning_rate(model_type: str, hidden: int, *, method: Method, steps: int, reinforcement: bool) -> Rate:
    """The learning rate of a run.

    Args:
        model_type: As in the model's config, such as `qwen3`. For an unknown type the derivation says so, and the
            hidden size is ignored.
        hidden: The model's hidden size.
        method: What is trained.
        steps: Optimizer updates of the run.
        reinforcement: Whether the run is reinforcement learning rather than supervised.
    """
    supervised = supervised_rate(model_type, hidden, method=method, steps=steps)
    if not reinforcement:
        return supervised
    family, power = FAMILIES.get(model_type, (None, 0.0))
    scaled = RL_RATE * (RL_HIDDEN / hidden) ** power
    value = min(max(scaled, RL_LOWEST), RL_HIGHEST)
    lines = [
        f"{RL_RATE:g} is where reinforcement learning with LoRA starts, in a range of {RL_LOWEST:g} … {RL_HIGHEST:g} "
        "(tinker-cookbook)"
    ]
    if scaled != RL_RATE:
        lines.append(
            f"× ({RL_HIDDEN}/{hidden})^{power:g} = {scaled:.3g}, since those recipes have hidden size {RL_HIDDEN} and "
            f"this model {hidden}, by the power of supervised runs of {family} (derived)"
        )
    if value != scaled:
        lines.append(f"kept within the range: {value:g}")
    if family is None:
        lines.append(_unknown(model_type))
    if method == "full":
        ratio = _ratio(steps)
        value /= ratio
        lines.append(f"÷ {ratio} for full fine-tuning in {steps} updates (LoRA Without Regret) = {value:.3g}")
    if hidden < REFERENCE_HIDDEN:
        lines.append(
            f"hidden size {hidden} is far below what any recipe was made for, and small models take more: try rates up "
            "to the supervised one and beyond"
        )
    return Rate(value=value, derivation=(*lines, "for comparison, the supervised rule: " + supervised.describe()))


def supervised_rate(model_type: str, hidden: int, *, method: Method, steps: int) -> Rate:
    """LR = 5e-5 · (10 if LoRA else 1) · (2000/hidden)^p, with 15 instead of 10 in runs of fewer than 100 updates."""
    family, power = FAMILIES.get(model_type, (None, 0.0))
    ratio = _ratio(steps) if method == "lora" else 1
    value = BASE_RATE * ratio * (REFERENCE_HIDDEN / hidden) ** power
    terms = [f"{BASE_RATE:g}"]
    if method == "lora":
        terms.append(f"{ratio} (LoRA)")
    if family is not None:
        terms.append(f"({REFERENCE_HIDDEN}/{hidden})^{power:g} ({family})")
    lines = [f"{' × '.join(terms)} = {value:.3g} (tinker-cookbook, get_lr; fitted on supervised runs)"]
    if ratio == SHORT_LORA_RATIO:
        lines.append(
            f"{SHORT_LORA_RATIO} in place of {LORA_RATIO} since {steps} updates are fewer than {SHORT_RUN_STEPS} "
            "(LoRA Without Regret)"
        )
    if family is None:
        lines.append(_unknown(model_type))
    return Rate(value=value, derivation=tuple(lines))


def _ratio(steps: int) -> int:
    return SHORT_LORA_RATIO if steps < SHORT_RUN_STEPS else LORA_RATIO


def _unknown(model_type: str) -> str:
    known = ", ".join(FAMILIES)
    return f"nothing was fitted to the family {model_type!r} (known: {known}), so its hidden size is left out"


def rate_of_run(config: Config | SftConfig, model_config: Any) -> Rate:
    """The learning rate for a configured run.

    Args:
        config: The run's configuration. A supervised run that is measured in epochs counts as long.
        model_config: The model's configuration, as transformers' `AutoConfig` reads it.
    """
    text, method = model_config.get_text_config(), config.method
    if isinstance(config, SftConfig):
        steps = config.train.steps or SHORT_RUN_STEPS
        return learning_rate(text.model_type, text.hidden_size, method=method, steps=steps, reinforcement=False)
    updates = config.train.steps * config.learner.updates
    return learning_rate(text.model_type, text.hidden_size, method=method, steps=updates, reinforcement=True)
