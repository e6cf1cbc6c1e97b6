"""How far sampler and learner may be apart before a run must stop."""

from __future__ import annotations

import math

from rl_engine.config import Config
from rl_engine.learner.statistics import LearnStats

# (KL, largest gap of one token), in nats. Two float32 implementations differ by rounding alone. In bfloat16 the
# mean stays small while single unlikely tokens may be far apart; 0.01 is where runs were seen to stay stable.
LIMITS = {"float32": (1e-6, 1e-2), "bfloat16": (1e-2, 2.0)}


def gap_limits(config: Config) -> tuple[float, float]:
    """(largest `sampler/kl`, largest `sampler/logprob_gap_max`) of a run, in nats.

    With top_p < 1 the sampler's log-probabilities are those of the cut and renormalised distribution: higher than
    the learner's by up to −ln(top_p), which is not a fault.
    """
    kl, gap = LIMITS[config.model.dtype]
    cut = -math.log(config.sampling.top_p)
    chosen_kl, chosen_gap = config.rollout.max_kl, config.rollout.max_logprob_gap
    return (
        kl + 0.5 * cut * cut if chosen_kl == "auto" else chosen_kl,
        gap + cut if chosen_gap == "auto" else chosen_gap,
    )


class SamplerGapError(RuntimeError):
    """The sampler does not sample from the policy that is being trained."""


def refuse_gap(stats: LearnStats, max_kl: float, max_gap: float) -> None:
    kl, gap = stats.sampler_kl, stats.logprob_gap_max
    # Not `kl > max_kl`: a comparison with NaN is false, and NaN is no agreement.
    if not (kl <= max_kl and gap <= max_gap):
        raise SamplerGapError(
            f"the sampler's log-probabilities are not the learner's: sampler/kl {kl:.3g} (limit {max_kl:.3g}), "
            f"sampler/logprob_gap_max {gap:.3g} (limit {max_gap:.3g}) nats. Nothing was updated. Either the last "
            "adapter did not reach the sampler, or the two run the model at different precision; the limits are "
            "rollout.max_kl and rollout.max_logprob_gap."
        )
