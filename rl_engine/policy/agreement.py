"""Policy → whether its log-probabilities match the model's own forward pass; checked once, before anything is sampled.

The learner computes log-probabilities from the last hidden states itself, in chunks. It reads what else a model family
does to its logits from the configuration (`rl_engine/policy/logits.py`); this check catches families that do more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.micro_batch import MicroBatch

PROMPT_TOKENS = 64
"""Maximum tokens of the prompt that are compared, since all their logits are computed at once."""

# Both sides use the same hidden states, so float32 differs by rounding only. In bfloat16 the model's own logits are
# rounded: between 16 and 32 they are spaced 2⁻³ apart.
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean difference of a token's log-probability, by the output embedding's precision, nats."""


class DisagreementError(ValueError):
    """The learner cannot compute this model's log-probabilities."""


@torch.no_grad()
def own_logprobs(policy: LogprobModel, batch: MicroBatch) -> Tensor:
    """[N] nats: the completion tokens' log-probabilities from the model's own forward pass, with all logits at once."""
    logits_BTV: Tensor = policy.causal_lm(**batch.model_inputs(policy.causal_lm.config), use_cache=False).logits
    logits_NV = logits_BTV.flatten(0, 1).index_select(0, batch.source_N).float() / policy.temperature
    return logits_NV.log_softmax(dim=-1).gather(1, batch.target_N[:, None]).squeeze(1)


@torch.no_grad()
def check_agreement(policy: LogprobModel, batch: MicroBatch, name: str) -> None:
    """Compare the policy in training mode with the model in evaluation mode, so that active dropout shows up too.

    Raises `DisagreementError` if they differ by more than rounding, or the model's are not numbers.
    """
    learned = policy.causal_lm.training
    try:
        expected_N = own_logprobs(policy.eval(), batch)
        found_N, _ = policy.train()(batch)
    except (AttributeError, TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "dtype" not in str(error):  # of memory, for one
            raise
        raise DisagreementError(
            f"model.name {name}: the learner cannot run models of type {_kind(policy)} part by part ({error}), so they "
            "are not supported: use a model of another family"
        ) from error
    finally:
        policy.train(learned)
    if not expected_N.isfinite().all():
        raise DisagreementError(
            f"model.name {name}: the model's own log-probabilities of a prompt are not numbers, because its weights "
            "hold NaN or infinity, or are too large: the file is damaged, or its training diverged; use another"
        )
    gap = float((found_N - expected_N).abs().mean())
    limit = LIMITS[policy.head.weight.dtype]
    if not gap <= limit:
        raise DisagreementError(
            f"model.name {name}: learner and model disagree on a prompt by {gap:.3g} nats per token (limit {limit:g}): "
            f"models of type {_kind(policy)} compute something that the learner does not implement; use a model of "
            "another family"
        )


def _kind(policy: LogprobModel) -> str:
    return str(policy.causal_lm.config.get_text_config().model_type)


def check_with_prompts(
    policy: LogprobModel, prompts: Iterable[Sequence[int]], batch_of: Callable[[Sequence[int]], MicroBatch], name: str
) -> None:
    """Run `check_agreement` on the first prompt with at least two tokens, if there is one. Takes no further
    prompt: a data set as lists of integers has a hundred times the bytes of its text."""
    for prompt in prompts:
        if len(prompt) > 1:
            check_agreement(policy, batch_of(prompt[:PROMPT_TOKENS]), name)
            return
