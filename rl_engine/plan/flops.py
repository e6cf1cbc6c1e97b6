"""Configuration, model and a step's tokens → floating-point operations.

Nothing here is measured. A multiply-add is two operations (FLOP); padding, norms and softmax are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rl_engine.config import Config, LoraConfig, Method
from rl_engine.learner.objective import needs_base, needs_old_logprobs
from rl_engine.plan.sizes import Widths, Workload
from rl_engine.policy.attention import SHARING
from rl_engine.policy.base_model import choose_layout
from rl_engine.policy.lora.targets import (
    LayerSize,
    adaptable,
    expert_rank,
    experts_per_token,
    head_of,
    match_targets,
    rank_of,
    trains_head,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplyAdds:
    """Multiply-adds of one token passing forward."""

    matrices: int
    """Those of all linear layers but the output embedding; of a mixture, of the experts a token passes through."""
    adapter: int
    """Those of the rank-wide matrices beside them."""
    head: int
    """Those of the output embedding."""
    head_adapter: int
    attended: int
    """For each position that is attended to: a score and a weighted sum in every head."""

    @classmethod
    def of(cls, meta_model: nn.Module, lora: LoraConfig) -> MultiplyAdds:
        widths = Widths.of(meta_model)
        active = experts_per_token(meta_model)
        head, targets = head_of(meta_model), match_targets(meta_model, lora.targets)

        def of_adapter(path: str, layer: LayerSize) -> int:
            if layer.experts:
                return active * expert_rank(meta_model, lora) * (layer.inputs + layer.outputs)
            return rank_of(path, lora) * (layer.inputs + layer.outputs)

        return cls(
            matrices=sum(
                layer.inputs * layer.outputs * (active if layer.experts else 1)
                for layer in adaptable(meta_model).values()
            ),
            adapter=sum(of_adapter(path, layer) for path, layer in targets.items() if path not in head),
            head=widths.vocabulary * widths.hidden,
            head_adapter=sum(of_adapter(path, layer) for path, layer in targets.items() if path in head),
            attended=widths.attending * widths.heads * (widths.head_dim + widths.value_dim),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one step, all devices together."""

    sampling: float
    """Prompts once a group, then a token at a time."""
    learning: float
    """Forward and backward."""
    recomputed: float
    """Passes that are made once more: for gradient checkpointing, for the KL to the base, for old log-probabilities."""

    @property
    def total(self) -> float:
        return self.sampling + self.learning + self.recomputed


def forward_flops(multiply_adds: MultiplyAdds, work: Workload, *, prompts: int, adapted: bool) -> float:
    """Operations of one pass over a step's tokens, each prompt passed `prompts` times, logits of completion tokens
    alone.

    A position attends to itself and to all before it: Σ t = n(n + 1)/2.
    """

    def triangle(tokens: int) -> float:
        return tokens * (tokens + 1) / 2

    length = work.prompt_tokens + work.completion_tokens
    positions = prompts * work.prompt_tokens + work.completions * work.completion_tokens
    seen = prompts * triangle(work.prompt_tokens) + work.completions * (triangle(length) - triangle(work.prompt_tokens))
    predicted = work.completions * work.completion_tokens
    each = multiply_adds.matrices + (multiply_adds.adapter if adapted else 0)
    head = multiply_adds.head + (multiply_adds.head_adapter if adapted else 0)
    return 2 * work.groups * (positions * each + seen * multiply_adds.attended + predicted * head)


def learning_flops(multiply_adds: MultiplyAdds, work: Workload, *, prompts: int, method: Method) -> float:
    """Operations of forward and backward over a step's tokens.

    A trained matrix is multiplied with three times: forward, for the gradient of its input, for its own. A frozen one
    needs no gradient of its own: that is the third which LoRA saves, (2 + 6r/N)/3 of an N × N matrix. Attention has no
    weights: its backward pass is twice its forward pass in both. (Counted with it, and small: the gradients of the very
    first layer's inputs, which LoRA does not compute.)
    """
    forward = forward_flops(multiply_adds, work, prompts=prompts, adapted=method == "lora")
    if method == "full":
        return 3 * forward
    positions = prompts * work.prompt_tokens + work.completions * work.completion_tokens
    predicted = work.completions * work.completion_tokens
    saved = 2 * work.groups * (positions * multiply_adds.matrices + predicted * multiply_adds.head)
    return 3 * forward - saved


def step_flops(config: Config, meta_model: nn.Module, work: Workload, *, method: Method, device_type: str) -> StepFlops:
    """What one step of this run asks for, with LoRA or with every weight learning, on `cpu` or `cuda`."""
    multiply_adds = MultiplyAdds.of(meta_model, config.lora)
    adapted = method == "lora"
    prompts = 1 if choose_layout(config, meta_model.config, device_type) in SHARING else work.completions
    forward = forward_flops(multiply_adds, work, prompts=prompts, adapted=adapted)
    head = multiply_adds.head + (multiply_adds.head_adapter if adapted else 0)
    logits = 2 * work.episodes * work.completion_tokens * head
    updates, epochs = config.learner.updates_per_step, config.learner.epochs_per_step
    recomputed = 0.0
    if config.learner.gradient_checkpointing:
        recomputed += forward - logits
    if trains_head(meta_model, config.lora, method):
        recomputed += logits
    if needs_base(config.loss):
        recomputed += forward_flops(multiply_adds, work, prompts=prompts, adapted=False)
    recomputed *= epochs
    if needs_old_logprobs(config.loss):
        # Scored before the first update: all that is learned from after it.
        recomputed += forward if epochs > 1 else forward * (updates - 1) / updates
    return StepFlops(
        sampling=forward_flops(multiply_adds, work, prompts=1, adapted=adapted),
        learning=epochs * learning_flops(multiply_adds, work, prompts=prompts, method=method),
        recomputed=recomputed,
    )
