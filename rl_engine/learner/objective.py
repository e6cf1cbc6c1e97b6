"""Configuration and a micro-batch's log-probabilities → its loss, with the configured corrections and penalties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_engine.config import LossConfig
from rl_engine.learner.losses import KL_ESTIMATORS, LOSSES, RATIOS, bounds_hit, sampler_weight
from rl_engine.policy.micro_batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of one micro-batch and its statistics. Everything stays on the device, so nothing here waits for a GPU.
    Only `loss` carries a gradient."""

    loss: Tensor
    """[] this micro-batch's part of the step's loss."""
    log_ratio_N: Tensor
    """[N] log of the ratio used by the loss."""
    bounds_hit: tuple[Tensor, Tensor]
    """[] number of tokens held by the lower and by the upper clipping bound."""
    corrected: tuple[Tensor, Tensor] | None
    """[] (sum of the sampler correction's token weights, number of tokens outside its bounds); None without one."""


def needs_every_group(config: LossConfig) -> bool:
    """Whether completions with zero advantage have a gradient too."""
    return config.kl_coef > 0 or config.entropy_coef != 0


def needs_base(config: LossConfig) -> bool:
    return config.kl_coef > 0


def needs_old_logprobs(config: LossConfig) -> bool:
    """Whether the loss uses the learner's own log-probabilities at the start of the step.

    In the first update they are the current ones; for later updates they must be computed before it.
    """
    return config.clips or config.correction != "none"


def objective(
    config: LossConfig,
    batch: MicroBatch,
    logprob_BC: Tensor,
    entropy_BC: Tensor,
    base_logprob_BC: Tensor | None,
) -> Objective:
    """A micro-batch's contribution to the step's loss.

    Args:
        config: the `loss:` section.
        batch: B completions.
        logprob_BC: [B, C] nats, the policy's log-probabilities; carries the gradient.
        entropy_BC: [B, C] nats, the policy's entropy at each position; carries a gradient if there is an entropy bonus.
        base_logprob_BC: [B, C] nats, the base model's log-probabilities; required with a KL penalty.
    """
    mask_BC, behaviour_BC = batch.mask_BC, batch.behaviour_logprob_BC
    corrects = config.correction != "none"
    at_start_BC = logprob_BC.detach() if batch.old_logprob_BC is None else batch.old_logprob_BC
    # Clipping bounds how far the learner has moved. Measured against the sampler, rounding alone would decide which
    # tokens are clipped: in bfloat16 it exceeds GSPO's bounds.
    old_BC = at_start_BC if needs_old_logprobs(config) else behaviour_BC
    advantage_BC = batch.advantage_B[:, None].expand_as(logprob_BC)
    if base_logprob_BC is not None and config.kl_penalty == "advantage":
        # log p/p_base as a per-token cost: its policy gradient is that of each position's KL given the prefix.
        advantage_BC = advantage_BC - config.kl_coef * (logprob_BC.detach() - base_logprob_BC)
    bounds = config.bounds()
    loss_BC = LOSSES[config.name](logprob_BC, old_BC, advantage_BC, mask_BC, **bounds)
    corrected = None
    if corrects:
        level, _, action = config.correction.partition("_")
        weight_BC, outside_BC = sampler_weight(
            at_start_BC - behaviour_BC,
            mask_BC,
            level=level,
            action=action,
            low=config.correction_min,
            high=config.correction_max,
        )
        loss_BC = loss_BC * weight_BC
        corrected = (weight_BC * mask_BC).sum(), outside_BC.sum()
    if base_logprob_BC is not None and config.kl_penalty != "advantage":
        estimator, _, weighted = config.kl_penalty.partition("_")
        kl_BC = KL_ESTIMATORS[estimator](logprob_BC, base_logprob_BC)
        if weighted:
            kl_BC = kl_BC * RATIOS[config.name](logprob_BC, old_BC, mask_BC)
        loss_BC = loss_BC + config.kl_coef * kl_BC
    if config.entropy_coef:
        loss_BC = loss_BC - config.entropy_coef * entropy_BC
    with torch.no_grad():
        ratio_BC = RATIOS[config.name](logprob_BC, old_BC, mask_BC)
        hits = bounds_hit(
            ratio_BC, advantage_BC, mask_BC, bounds.get("clip_low", float("inf")), bounds.get("clip_high", float("inf"))
        )
    return Objective(
        loss=((loss_BC * mask_BC).sum(dim=1) * batch.weight_B).sum(),
        log_ratio_N=batch.tokens_of(ratio_BC).log(),
        bounds_hit=hits,
        corrected=corrected,
    )
