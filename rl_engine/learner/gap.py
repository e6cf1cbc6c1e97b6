"""How far sampler and learner may be apart before a run must stop."""

from __future__ import annotations

import math

from rl_engine.config import Config

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
