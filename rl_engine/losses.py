"""Log-probabilities and advantages → the loss of each token: pure functions, and one table that names them.

A loss returns [B, C] token losses; the learner sums them under the mask and divides by one normaliser of the whole
step, over all micro-batches and ranks, so that splitting a batch differently changes nothing but rounding.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Loss(Protocol):
    def __call__(
        self, logprob_BC: Tensor, behaviour_logprob_BC: Tensor, advantage_B: Tensor, mask_BC: Tensor
    ) -> Tensor: ...


def importance_sampling(
    logprob_BC: Tensor, behaviour_logprob_BC: Tensor, advantage_B: Tensor, mask_BC: Tensor
) -> Tensor:
    """L_t = −(p_θ(y_t) / q(y_t)) · A: importance-weighted policy gradient, the default.

    q is the sampler's own probability, so that what rounding or a stale adapter put between sampler and learner is
    corrected for. Its gradient is −(p/q) · A · ∇log p. No clipping, no division by a spread, no KL term
    (Schulman et al. 2025, "LoRA Without Regret"; Tinker's `importance_sampling`).

    Args:
        logprob_BC: [B, C] nats, the learner's log-probability of each sampled token; carries the gradient.
        behaviour_logprob_BC: [B, C] nats, the sampler's.
        advantage_B: [B] one advantage a completion.
        mask_BC: [B, C] whether the position holds a token.

    Returns:
        [B, C] losses, zero outside the mask.
    """
    ratio_BC = ((logprob_BC - behaviour_logprob_BC) * mask_BC).exp()
    return -ratio_BC * advantage_B[:, None] * mask_BC


def reinforce(logprob_BC: Tensor, behaviour_logprob_BC: Tensor, advantage_B: Tensor, mask_BC: Tensor) -> Tensor:
    """L_t = −log p_θ(y_t) · A (Williams 1992): the same gradient as `importance_sampling` when sampler and learner
    agree exactly, and no correction when they do not.

    Args and returns: as `importance_sampling`; `behaviour_logprob_BC` is not used.
    """
    return -logprob_BC * advantage_B[:, None] * mask_BC


LOSSES: dict[str, Loss] = {"importance_sampling": importance_sampling, "reinforce": reinforce}


def constant(completions: int, max_tokens: int) -> float:
    """Completions of the step × the most tokens one may have: the same for every step of a run.

    Long and short completions then count alike a token, and a step with short completions is not blown up
    (Dr. GRPO: Liu et al. 2025, section 3.2).

    Args:
        completions: sampled in the whole step over all ranks, those without signal included.
        max_tokens: `sampling.max_tokens`.
    """
    return float(completions * max_tokens)


NORMALIZERS = {"constant": constant}
