"""Hidden states → log-probabilities of the sampled tokens, in chunks: no [B, T, V] tensor is ever made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl_engine.batching import MicroBatch

CHUNK = 512


class _TokenLogprobs(torch.autograd.Function):
    """log p(y_i) = z_i[y_i] − logsumexp(z_i) with z_i = W h_i / temperature, W frozen.

    Its gradient is ∂log p(y_i)/∂h_i = (W[y_i] − Σ_v p_v W[v]) / temperature: one vector of the hidden size a token.
    It is computed while the chunk's probabilities are at hand, so that the backward pass needs no logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, gradients = [], [], []
        for hidden_nH, target_n in zip(hidden_NH.split(CHUNK), target_N.split(CHUNK), strict=True):
            logits_nV = (hidden_nH @ weight_VH.T).float() / temperature
            all_nV = logits_nV.log_softmax(dim=-1)
            probs_nV = all_nV.exp()
            logprobs.append(all_nV.gather(1, target_n[:, None]).squeeze(1))
            # Σ p log p: where p underflows to zero the product is zero, not NaN, since log p stays finite.
            entropies.append(-(probs_nV * all_nV).sum(dim=-1))
            if ctx.needs_input_grad[0]:
                mean_nH = probs_nV.to(weight_VH.dtype) @ weight_VH
                gradients.append((weight_VH[target_n] - mean_nH) / temperature)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        entropy_N = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return (grad_N[:, None] * gradient_NH).to(gradient_NH.dtype), None, None, None


def token_logprobs(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy of its distribution (without gradient).

    Args:
        hidden_NH: [N, H] last hidden states at the positions that predict the targets.
        weight_VH: [V, H] output embedding, frozen.
        target_N: [N] token ids.
        temperature: of the sampler; the policy is the tempered distribution.

    Returns:
        ([N] nats, [N] nats), float32.
    """
    logprob_N, entropy_N = _TokenLogprobs.apply(hidden_NH, weight_VH, target_N, temperature)  # type: ignore[no-untyped-call]
    return logprob_N, entropy_N


class Policy(nn.Module):
    """A causal language model of transformers, with or without LoRA layers in it, that answers with
    log-probabilities of completion tokens."""

    def __init__(self, causal_lm: Any, temperature: float) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """([N] log-probabilities, [N] entropies) of the batch's completion tokens, in nats."""
        hidden_BTH = self.causal_lm.get_decoder()(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False
        ).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1)[batch.source_N]
        head = self.causal_lm.get_output_embeddings()
        return token_logprobs(hidden_NH, head.weight, batch.target_N, self.temperature)
