"""The `loss:` section: what is minimized, against which baseline, with which corrections and penalties."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rollout.config import Section

# Default distances of the clipping bounds from a ratio of 1, for `loss.clip_low` and `loss.clip_high`. A loss that is
# not listed does not clip.
CLIP_BOUNDS: dict[str, dict[str, float]] = {
    "ppo_clip": {"clip_low": 0.2, "clip_high": 0.2},
    "cispo": {"clip_high": 3.0},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
}
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class LossConfig(Section):
    name: Literal["importance_sampling", "reinforce", "ppo_clip", "cispo", "gspo"] = Field(
        "importance_sampling", description="Objective: an entry of `rl_engine.learner.losses.LOSSES`."
    )
    baseline: Literal["group_mean", "leave_one_out", "group_mean_std"] = Field(
        "group_mean",
        description="What a completion's reward is compared with; group_mean_std also divides by the group's "
        "standard deviation (GRPO).",
    )
    normalizer: Literal["constant", "tokens", "sequence"] = Field(
        "constant",
        description="What the step's sum of token losses is divided by. constant: completions × max_tokens; "
        "tokens: the tokens of the step (DAPO); sequence: each completion's own length, then the "
        "number of completions (GRPO).",
    )
    clip_low: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Ratios below 1 − clip_low are clipped; if unset, 0.2 for ppo_clip and 3e-4 for gspo.",
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="Ratios above 1 + clip_high are clipped; if unset, 0.2 for ppo_clip, 3 for cispo and 4e-4 "
        "for gspo.",
    )
    sampler_correction: Literal["auto"] | Correction = Field(
        "auto",
        description="Weight the loss by the learner/sampler probability ratio at the start of the step, "
        "within bounds. auto: `token_truncate` for ppo_clip, cispo and gspo, whose own ratio is "
        "to the learner at the start of the step and so does not see the sampler; `none` for "
        "importance_sampling, whose ratio is to the sampler, and for reinforce.",
    )
    correction_min: float = Field(0.0, ge=0, lt=1, description="Smallest such weight that is left unchanged.")
    correction_max: float = Field(2.0, gt=1, description="Largest such weight that is left unchanged.")
    kl_coef: float = Field(0.0, ge=0, description="Weight of the KL to the base model; 0 disables it.")
    kl_penalty: Literal["k1", "k2", "k3", "k3_weighted", "advantage"] = Field(
        "k3",
        description="Estimator of the KL in the loss; k3_weighted is k3 times the loss's ratio, without its bounds "
        "(TRL's default). `advantage` subtracts log p/p_base from the advantages instead.",
    )
    entropy_coef: float = Field(
        0.0,
        description="Weight of the entropy bonus, which `loss.normalizer` averages like the loss; a negative value is "
        "a penalty.",
    )

    def bounds(self) -> dict[str, float]:
        """Clipping bounds of the chosen loss, by argument name."""
        return {key: getattr(self, key) or default for key, default in CLIP_BOUNDS.get(self.name, {}).items()}

    def terms(self) -> list[str]:
        """What is added to the loss, as text for the user."""
        terms = [f"KL to the base model × {self.kl_coef:g} ({self.kl_penalty})"] if self.kl_coef else []
        return [*terms, f"entropy × {self.entropy_coef:g}"] if self.entropy_coef else terms

    @property
    def correction(self) -> Correction:
        """`sampler_correction` with auto resolved."""
        if self.sampler_correction == "auto":
            return "token_truncate" if self.clips else "none"
        return self.sampler_correction

    @property
    def clips(self) -> bool:
        """Whether the loss bounds its ratio, that is, how far the policy has moved since the start of the step."""
        return self.name in CLIP_BOUNDS

    @model_validator(mode="after")
    def _bounds_belong_to_the_loss(self) -> Self:
        for key in ("clip_low", "clip_high"):
            if getattr(self, key) is not None and key not in CLIP_BOUNDS.get(self.name, {}):
                users = [name for name, bounds in CLIP_BOUNDS.items() if key in bounds]
                raise ValueError(f"loss.{key} has no meaning for {self.name}; it belongs to {', '.join(users)}")
        return self
