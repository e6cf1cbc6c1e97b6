"""Hidden states → log-probabilities of the sampled tokens, in chunks: no [B, T, V] tensor is ever materialized.

The legend of shapes is in `rl_engine/learner/advantages.py`; a chunk holds n of the N completion tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from rl_engine.policy.logits import PLAIN, LogitTransform, compiled, transform_of
from rl_engine.policy.micro_batch import MicroBatch

# Float32 logits computed at once. On a GPU, 512 rows keep the matrix units busy; more rows save kernel launches, as
# long as five copies of a chunk are a small part of its memory. On a CPU, buffers over 32 MiB are mapped from the
# system again each time, page by page, so a chunk stays below that.
CHUNK = 512
CHUNK_BYTES = 512 * 2**20
CPU_CHUNK_BYTES = 28 * 2**20


def rows_at_once(vocabulary: int, device_type: str) -> int:
    """Number of completion tokens whose logits are computed together, on `cpu` or `cuda`."""
    if device_type != "cpu":
        return max(CHUNK, CHUNK_BYTES // (4 * vocabulary))
    return max(16, CPU_CHUNK_BYTES // (4 * vocabulary))


def _of_logits(logits_nV: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probability of each target, entropy, all log-probabilities, all probabilities)."""
    all_nV = logits_nV.log_softmax(dim=-1)
    probs_nV = all_nV.exp()
    # Σ p log p: if p underflows to zero, the product is zero and not NaN, since log p stays finite.
    entropy_n = -torch.linalg.vecdot(probs_nV, all_nV)
    return all_nV.gather(1, target_n[:, None]).squeeze(1), entropy_n, all_nV, probs_nV


def _pull_of_targets(weight_VH: Tensor, probs_nV: Tensor, target_n: Tensor, slope_nV: Tensor | None) -> Tensor:
    """[n, H] s_y W[y] − Σ_v p_v s_v W[v], where s is the cap's slope (1 without a cap); the divisor is left out.

    For a nearly certain token the two terms nearly cancel. In bfloat16 their rounding errors would exceed the
    difference, so (onehot − p) is computed first, in float32, and rounded once. In float32 the difference of the
    products still has 5 digits at p = 0.99.
    """
    if weight_VH.dtype == torch.float32 and slope_nV is None:
        return weight_VH[target_n] - probs_nV @ weight_VH
    pull_nV = probs_nV.neg().scatter_add_(1, target_n[:, None], torch.ones_like(probs_nV[:, :1]))
    if slope_nV is not None:
        pull_nV = pull_nV * slope_nV
    return pull_nV.to(weight_VH.dtype) @ weight_VH


def _frozen_chunk(
    raw_nV: Tensor, target_n: Tensor, weight_VH: Tensor, transform: LogitTransform, parts: int
) -> tuple[Tensor, ...]:
    """The first `parts` of: [n] log-probabilities, [n] entropies, and [n, H] their gradients at the hidden states."""
    if raw_nV.is_cuda and raw_nV.dtype != torch.float32:
        logprob_n, entropy_n, *pulls = compiled(parts)(raw_nV, target_n, transform.divisor, transform.cap)
        signed = zip(pulls, (transform.divisor, -transform.divisor), strict=False)
        return logprob_n, entropy_n, *(pull_nV @ weight_VH / divisor for pull_nV, divisor in signed)
    logits_nV = transform.apply(raw_nV.float())
    logprob_n, entropy_n, all_nV, probs_nV = _of_logits(logits_nV, target_n)
    results = [logprob_n, entropy_n]
    if parts > 2:
        slope_nV = transform.cap_slope(logits_nV)
        results.append(_pull_of_targets(weight_VH, probs_nV, target_n, slope_nV) / transform.divisor)
        if slope_nV is not None:
            probs_nV = probs_nV * slope_nV
    if parts > 3:
        pull_nV = probs_nV * (all_nV + entropy_n[:, None])
        results.append(pull_nV.to(weight_VH.dtype) @ weight_VH / -transform.divisor)
    return tuple(results)


class _FrozenHead(torch.autograd.Function):
    """log p(y_i) = z_i[y_i] − logsumexp(z_i) and H_i = −Σ_v p_v log p_v with z_i = t(W h_i + b), W and b frozen.

    With s_v = t'(W[v] h_i + b_v): ∂log p(y_i)/∂h_i = s_y W[y_i] − Σ_v p_v s_v W[v] and ∂H_i/∂h_i = −Σ_v p_v (log p_v +
    H_i) s_v W[v]. Each is one vector of the hidden size per token. They are computed in the forward pass, while the
    chunk's probabilities are available, so that the backward pass does not recompute logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        transform: LogitTransform,
        learn_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = rows_at_once(len(weight_VH), weight_VH.device.type)
        parts = (4 if learn_entropy else 3) if ctx.needs_input_grad[0] else 2
        chunks = [
            _frozen_chunk(linear(hidden_nH, weight_VH, bias_V), target_n, weight_VH, transform, parts)
            for hidden_nH, target_n in zip(hidden_NH.split(rows), target_N.split(rows), strict=True)
        ]
        logprob_N, entropy_N, *gradients = (torch.cat(part) for part in zip(*chunks, strict=True))
        if gradients:
            ctx.save_for_backward(gradients[0], gradients[1] if learn_entropy else None)
        if not learn_entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, entropy_grad_N: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient_NH, entropy_gradient_NH = ctx.saved_tensors
        total_NH = grad_N[:, None] * gradient_NH
        if entropy_gradient_NH is not None:
            total_NH = total_NH + entropy_grad_N[:, None] * entropy_gradient_NH
        return total_NH.to(gradient_NH.dtype), None, None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """Same as `_FrozenHead`, but W is trained. With g = ∂L/∂log p(y_i) and e = ∂L/∂H_i of a row, the gradient at its
    logits is d_v = (g (1[v = y] − p_v) − e p_v (log p_v + H)) t'_v; ∂L/∂h = d W and ∂L/∂W = Σ_i d_i h_iᵀ.

    The backward pass recomputes the logits. The sum over chunks is float32 and rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        rows = rows_at_once(len(weight_VH), weight_VH.device.type)
        chunks = [
            _frozen_chunk(linear(hidden_nH, weight_VH, bias_V), target_n, weight_VH, transform, 2)
            for hidden_nH, target_n in zip(hidden_NH.split(rows), target_N.split(rows), strict=True)
        ]
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N)
        ctx.transform, ctx.rows = transform, rows
        logprob_N, entropy_N = (torch.cat(part) for part in zip(*chunks, strict=True))
        return logprob_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, entropy_grad_N: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        hidden_NH, weight_VH, bias_V, target_N = ctx.saved_tensors
        grads_NH = []
        grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        grad_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for hidden_nH, target_n, grad_n, entropy_grad_n in zip(
            *(part.split(ctx.rows) for part in (hidden_NH, target_N, grad_N, entropy_grad_N)), strict=True
        ):
            logits_nV = ctx.transform.apply(linear(hidden_nH, weight_VH, bias_V).float())
            _, entropy_n, all_nV, probs_nV = _of_logits(logits_nV, target_n)
            pull_nV = -probs_nV * (grad_n[:, None] + entropy_grad_n[:, None] * (all_nV + entropy_n[:, None]))
            pull_nV.scatter_add_(1, target_n[:, None], grad_n[:, None])
            slope_nV = ctx.transform.cap_slope(logits_nV)
            pull_nV = (pull_nV if slope_nV is None else pull_nV * slope_nV) / ctx.transform.divisor
            pull_nV = pull_nV.to(weight_VH.dtype)
            grads_NH.append(pull_nV @ weight_VH)
            grad_VH += pull_nV.T @ hidden_nH
            if grad_V is not None:
                grad_V += pull_nV.float().sum(dim=0)
        grad_bias_V = None if bias_V is None or grad_V is None else grad_V.to(bias_V.dtype)
        return torch.cat(grads_NH), grad_VH.to(weight_VH.dtype), grad_bias_V, None, None


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    temperature: float,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform = PLAIN,
    learn_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy of its distribution, under a frozen output embedding.

    Args:
        hidden_NH: [N, H] last hidden states at the positions that predict the targets.
        weight_VH: [V, H] output embedding, frozen.
        target_N: [N] token ids.
        temperature: the sampler's; the policy is the tempered distribution.
        bias_V: [V] bias of the output embedding, if it has one, frozen.
        transform: what the model does to hidden · W + b.
        learn_entropy: whether the entropy carries a gradient.

    Returns:
        ([N] nats, [N] nats), float32.
    """
    logprob_N, entropy_N = _FrozenHead.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias_V, target_N, transform.tempered(temperature), learn_entropy
    )
    return logprob_N, entropy_N


def token_logprobs_of_trained_head(
    hidden_NH: Tensor, head: Any, target_N: Tensor, temperature: float, transform: LogitTransform = PLAIN
) -> tuple[Tensor, Tensor]:
    """Same as `token_logprobs`, for a trainable head, a module: the backward pass recomputes each chunk's logits."""
    rows, tempered = rows_at_once(len(head.weight), head.weight.device.type), transform.tempered(temperature)

    def of_chunk(hidden_nH: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        logprob_n, entropy_n, _, _ = _of_logits(tempered.apply(head(hidden_nH).float()), target_n)
        return logprob_n, entropy_n

    parts = [
        checkpoint(of_chunk, hidden_nH, target_n, use_reentrant=False)
        for hidden_nH, target_n in zip(hidden_NH.split(rows), target_N.split(rows), strict=True)
    ]
    return torch.cat([logprob for logprob, _ in parts]), torch.cat([entropy for _, entropy in parts])


def decoder_of(causal_lm: Any) -> Any:
    """The module that returns the last hidden states: in a multimodal model, the language model's decoder alone."""
    decoder = causal_lm.get_decoder()
    # If transformers finds no decoder under a name it knows, it returns the whole model (Llama 4).
    if decoder is causal_lm:
        return causal_lm.model
    return decoder_of(decoder) if getattr(decoder, "lm_head", None) is not None else decoder


def keep_evaluating(model: nn.Module, mode: bool) -> None:
    """Keep a model in evaluation mode, since that is the policy being sampled: in training mode some families apply
    dropout or jitter or drop whole experts, whatever their configuration says. Only modules with gradient checkpointing
    enter training mode (`mode`), which they need to recompute activations."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = mode


class LogprobModel(nn.Module):
    """Wraps a causal language model of transformers, with or without LoRA layers, to return the log-probabilities of
    completion tokens."""

    def __init__(self, causal_lm: Any, temperature: float, *, learn_entropy: bool = False) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        self.learn_entropy = learn_entropy
        self.transform = transform_of(causal_lm.config)

    def train(self, mode: bool = True) -> LogprobModel:
        super().train(mode)
        keep_evaluating(self.causal_lm, mode)
        return self

    @property
    def head(self) -> Any:
        return self.causal_lm.get_output_embeddings()

    @property
    def head_is_frozen(self) -> bool:
        """Whether the output embedding is a plain frozen matrix, without an adapter."""
        return type(self.head) is nn.Linear and not self.head.weight.requires_grad

    @property
    def head_is_cast(self) -> bool:
        """Whether the output embedding is a matrix that is trained in float32 and cast to 16 bits when read."""
        return isinstance(self.head, nn.Linear) and parametrize.is_parametrized(self.head, "weight")

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """([N] log-probabilities, [N] entropies) of the batch's completion tokens, in nats."""
        inputs = batch.model_inputs(self.causal_lm.config)
        hidden_BTH = decoder_of(self.causal_lm)(**inputs, use_cache=False).last_hidden_state
        # The first tokens of a group share a source position; with `[]` indexing, their gradients would be accumulated
        # in nondeterministic order.
        hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, batch.source_N)
        weight_VH = self.head.weight  # read once: a trained one may be cast by each reading
        hidden_NH = hidden_NH.to(weight_VH.dtype)  # Falcon Mamba's are always float32
        if self.head_is_frozen:
            return token_logprobs(
                hidden_NH,
                weight_VH,
                batch.target_N,
                self.temperature,
                bias_V=self.head.bias,
                transform=self.transform,
                learn_entropy=self.learn_entropy,
            )
        if self.head_is_cast:
            # Cast once per pass here, rather than for each chunk, forward and backward.
            logprob_N, entropy_N = _TrainedHead.apply(  # type: ignore[no-untyped-call]
                hidden_NH,
                weight_VH,
                self.head.bias,
                batch.target_N,
                self.transform.tempered(self.temperature),
            )
            return logprob_N, entropy_N
        return token_logprobs_of_trained_head(hidden_NH, self.head, batch.target_N, self.temperature, self.transform)
