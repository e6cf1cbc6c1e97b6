"""Log-probabilities and advantages → the loss of each token: pure functions, and tables that name them.

A loss returns [B, C] token losses. The learner weights each completion by the step's normalizer and sums over all
micro-batches and ranks, so that splitting a batch differently changes nothing but rounding.

Arguments of every loss:

- `logprob_BC`: [B, C] nats, the policy's log-probability of each sampled token; carries the gradient.
- `old_logprob_BC`: [B, C] nats, the same under the policy in the ratio's denominator: the learner at the start of the
  step if the loss clips or there is a sampler correction, otherwise the sampler.
- `advantage_BC`: [B, C] advantage of each token (constant within a completion unless it includes a KL penalty).
- `mask_BC`: [B, C] whether the position holds a token.

Bounds are distances from a ratio of one: `clip_high` 0.28 allows ratios up to 1.28.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


def importance_sampling(logprob_BC: Tensor, old_logprob_BC: Tensor, advantage_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """L_t = −r_t · A with r_t = p_θ(y_t) / q(y_t): importance-weighted policy gradient, the default.

    q is the sampler's own probability, which corrects for differences between sampler and learner from rounding or a
    stale adapter. The gradient is −r_t · A · ∇log p. No clipping, no division by a standard deviation, no KL term
    (Schulman et al. 2025, "LoRA Without Regret"; Tinker's `importance_sampling`).
    """
    return -token_ratio(logprob_BC, old_logprob_BC, mask_BC) * advantage_BC * mask_BC


def reinforce(logprob_BC: Tensor, old_logprob_BC: Tensor, advantage_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """L_t = −log p_θ(y_t) · A (Williams 1992): the same gradient as `importance_sampling` when sampler and learner
    agree exactly, and no correction when they do not. `old_logprob_BC` is ignored."""
    return -logprob_BC * advantage_BC * mask_BC


def ppo_clip(
    logprob_BC: Tensor,
    old_logprob_BC: Tensor,
    advantage_BC: Tensor,
    mask_BC: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """L_t = −min(r_t · A, clip(r_t, 1 − low, 1 + high) · A): a token has no gradient once its ratio has left the bounds
    in the direction of its advantage.

    Schulman et al. 2017, "Proximal Policy Optimization", equation 7; GRPO (Shao et al. 2024, equation 3) uses
    0.2/0.2, DAPO (Yu et al. 2025, equation 10) 0.2/0.28 so that unlikely tokens may grow.
    """
    ratio_BC = token_ratio(logprob_BC, old_logprob_BC, mask_BC)
    return _clipped(ratio_BC, advantage_BC, clip_low, clip_high) * mask_BC


def cispo(
    logprob_BC: Tensor, old_logprob_BC: Tensor, advantage_BC: Tensor, mask_BC: Tensor, *, clip_high: float = 3.0
) -> Tensor:
    """L_t = −sg[min(r_t, 1 + high)] · A · log p_θ(y_t), where sg stops the gradient: every token keeps a gradient and
    only its weight is bounded (MiniMax 2025, "MiniMax-M1", equation 4, with the upper bound only; by default r ≤ 4)."""
    weight_BC = token_ratio(logprob_BC, old_logprob_BC, mask_BC).clamp(max=1 + clip_high).detach()
    return -weight_BC * advantage_BC * logprob_BC * mask_BC


def gspo(
    logprob_BC: Tensor,
    old_logprob_BC: Tensor,
    advantage_BC: Tensor,
    mask_BC: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """L_t = −min(s · A, clip(s, 1 − low, 1 + high) · A) with s = exp(mean_t log r_t), one ratio per completion
    (Zheng et al. 2025, "Group Sequence Policy Optimization", equations 5 and 7, with the bounds of its section 5.1).

    The published method uses `normalizer: sequence`, which reduces a completion's equal token losses to one loss per
    completion.
    """
    ratio_BC = sequence_ratio(logprob_BC, old_logprob_BC, mask_BC)
    return _clipped(ratio_BC, advantage_BC, clip_low, clip_high) * mask_BC


def token_ratio(logprob_BC: Tensor, old_logprob_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """[B, C] r_t = p_θ(y_t) / p_old(y_t); one at padding."""
    return ((logprob_BC - old_logprob_BC) * mask_BC).exp()


def sequence_ratio(logprob_BC: Tensor, old_logprob_BC: Tensor, mask_BC: Tensor) -> Tensor:
    """[B, C] s = exp(mean_t log r_t), the geometric mean of a completion's ratios, repeated for each of its tokens."""
    log_ratio_B = ((logprob_BC - old_logprob_BC) * mask_BC).sum(dim=1) / mask_BC.sum(dim=1).clamp(min=1)
    return log_ratio_B.exp()[:, None].expand_as(logprob_BC)


def _clipped(ratio_BC: Tensor, advantage_BC: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio_BC * advantage_BC, ratio_BC.clamp(1 - low, 1 + high) * advantage_BC)


LOSSES: dict[str, Loss] = {
    "importance_sampling": importance_sampling,
    "reinforce": reinforce,
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
}
RATIOS: dict[str, Callable[..., Tensor]] = {**dict.fromkeys(LOSSES, token_ratio), "gspo": sequence_ratio}
"""The ratio of a loss, of tokens unless stated: `ratio/*`, the bounds' metrics and a weighted KL penalty use it too."""


def bounds_hit(
    ratio_BC: Tensor, advantage_BC: Tensor, mask_BC: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """([] tokens held by the lower bound, [] by the upper): tokens whose ratio is outside in the direction of their
    advantage, where a clipped loss has no gradient (CISPO keeps one, with a truncated weight)."""
    held_low = (ratio_BC < 1 - low) & (advantage_BC < 0) & mask_BC
    held_high = (ratio_BC > 1 + high) & (advantage_BC > 0) & mask_BC
    return held_low.sum(), held_high.sum()


# Estimators of KL(policy ‖ base) from the sampled tokens, with d = log p_θ − log p_base (Schulman 2020, "Approximating
# KL Divergence"). As on-policy losses, only k2 and k3 pull towards the base: the expected gradient of k1 is zero.


def k1(logprob_BC: Tensor, base_logprob_BC: Tensor) -> Tensor:
    """d: unbiased, may be negative. As an on-policy loss, its expected gradient E[∇log p_θ] is zero."""
    return logprob_BC - base_logprob_BC


def k2(logprob_BC: Tensor, base_logprob_BC: Tensor) -> Tensor:
    """½d²: biased as an estimate, but its expected on-policy gradient is exactly that of the KL."""
    return 0.5 * (logprob_BC - base_logprob_BC).square()


def k3(logprob_BC: Tensor, base_logprob_BC: Tensor) -> Tensor:
    """exp(−d) − 1 + d: unbiased and never negative. GRPO's penalty (Shao et al. 2024, equation 4).

    `k3_weighted` multiplies it by the loss's ratio r, through which the gradient flows too: with a ratio per token
    ∇(r · k3) = r · d · ∇log p_θ, which is the KL's gradient even for samples of an older policy (DeepSeek-AI 2025,
    "DeepSeek-V3.2").
    """
    difference_BC = base_logprob_BC - logprob_BC
    return difference_BC.expm1() - difference_BC


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def sampler_weight(
    log_ratio_BC: Tensor, mask_BC: Tensor, *, level: str, action: str, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Weights that correct each token's loss for the mismatch between the sampler q and the learner p at the start of
    the step.

    w = p/q of the token, or of the whole completion (the product over its tokens). A weight outside [low, high] is
    truncated to the bound (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training")
    or masked to zero (Ling team 2025, IcePop).

    Args:
        log_ratio_BC: [B, C] nats, log p − log q.
        mask_BC: [B, C] whether the position holds a token.
        level: `token` or `sequence`.
        action: `truncate` or `mask`.
        low: smallest weight left unchanged.
        high: largest weight left unchanged.

    Returns:
        ([B, C] weights without gradient, [B, C] whether the weight was outside the bounds).
    """
    log_ratio_BC = log_ratio_BC.detach() * mask_BC
    if level == "sequence":
        log_ratio_BC = log_ratio_BC.sum(dim=1, keepdim=True).expand_as(log_ratio_BC)
    weight_BC = log_ratio_BC.exp()
    outside_BC = ((weight_BC < low) | (weight_BC > high)) & mask_BC
    bounded_BC = weight_BC.clamp(low, high) if action == "truncate" else weight_BC.masked_fill(outside_BC, 0.0)
    return bounded_BC, outside_BC


# Normalizers: the weight of a completion's tokens in the step's loss, given the lengths [S] of all completions of the
# update on all ranks, including those without signal.


def constant(lengths_S: Tensor, max_tokens: int) -> Tensor:
    """1 / (S · max_tokens): the same for every step of a run, the default.

    Tokens of long and short completions then count equally, and a step with short completions is not scaled up
    (Dr. GRPO: Liu et al. 2025, section 3.2).
    """
    return torch.full_like(lengths_S, 1 / (len(lengths_S) * max_tokens))


def tokens(lengths_S: Tensor, max_tokens: int) -> Tensor:
    """1 / Σ lengths: the mean over all tokens of the update (DAPO: Yu et al. 2025, section 3.3)."""
    return torch.full_like(lengths_S, 1 / float(lengths_S.sum()))


def sequence(lengths_S: Tensor, max_tokens: int) -> Tensor:
    """1 / (S · length): the mean over completions of the mean over their tokens (GRPO: Shao et al. 2024). A long wrong
    completion is then penalized less per token than a short one."""
    return 1 / (len(lengths_S) * lengths_S)


NORMALIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "constant": constant,
    "tokens": tokens,
    "sequence": sequence,
}
