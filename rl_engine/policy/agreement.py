"""Policy → whether its log-probabilities are those of the model's own forward pass: asked once, before anything is
sampled.

The learner takes the last hidden states and makes log-probabilities of them itself, in chunks. What else a family does
to its logits it knows from the configuration (`rl_engine/policy/logits.py`); a family that does more is found out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.micro_batch import MicroBatch

PROMPT_TOKENS = 64
"""Most tokens of the prompt that is compared: all logits of it are made at once."""

# Both sides have the same hidden states, so that float32 differs by rounding alone. In bfloat16 the model's own logits
# are rounded: between 16 and 32 they are 2⁻³ apart.
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean difference of a token's log-probability, by the precision of the output embedding, nats."""


class DisagreementError(ValueError):
    """The learner cannot compute this model's log-probabilities."""


@torch.no_grad()
def own_logprobs(policy: LogprobModel, batch: MicroBatch) -> Tensor:
    """[N] nats: the completion tokens' log-probabilities by the model's own forward pass, all logits at once."""
    logits_BTV: Tensor = policy.causal_lm(**batch.model_inputs(policy.causal_lm.config), use_cache=False).logits
    logits_NV = logits_BTV.flatten(0, 1).index_select(0, batch.source_N).float() / policy.temperature
    return logits_NV.log_softmax(dim=-1).gather(1, batch.target_N[:, None]).squeeze(1)


@torch.no_grad()
def check_agreement(policy: LogprobModel, batch: MicroBatch, name: str) -> None:
    """Compare the policy as it learns with the model as it is evaluated: dropout that stayed on is a difference too.

    Raises `DisagreementError` when they are further apart than rounding.
    """
    learned = policy.causal_lm.training
    try:
        expected_N = own_logprobs(policy.eval(), batch)
        found_N, _ = policy.train()(batch)
    except (AttributeError, TypeError) as error:
        raise DisagreementError(
            f"model.name {name}: the learner cannot compute models of type {_kind(policy)} by their parts ({error}): "
            "they are not supported, use a model of another family"
        ) from error
    finally:
        policy.train(learned)
    gap = float((found_N - expected_N).abs().mean())
    limit = LIMITS[policy.head.weight.dtype]
    if not gap <= limit:
        raise DisagreementError(
            f"model.name {name}: the learner's log-probabilities of a prompt are {gap:.3g} nats per token from those "
            f"of the model's own forward pass (limit {limit:g}): models of type {_kind(policy)} compute something "
            "that the learner does not know, and are not supported; use a model of another family"
        )


def _kind(policy: LogprobModel) -> str:
    return str(policy.causal_lm.config.get_text_config().model_type)


def check_with_prompts(
    policy: LogprobModel, prompts: Sequence[Sequence[int]], batch_of: Callable[[Sequence[int]], MicroBatch], name: str
) -> None:
    """`check_agreement` on the first prompt of two tokens or more, if there is one."""
    for prompt in prompts:
        if len(prompt) > 1:
            check_agreement(policy, batch_of(prompt[:PROMPT_TOKENS]), name)
            return
