"""Configuration, model and a step's tokens → floating-point operations.

Nothing here is measured. A multiply-add counts as two operations (FLOP); padding, norms and softmax are not counted.
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
    """Multiply-adds of one token in a forward pass."""

    matrices: int
    """In all linear layers except the output embedding; in a mixture, only in the experts that a token uses."""
    adapter: int
    """In the LoRA factors of these layers."""
    head: int
    """In the output embedding."""
    head_adapter: int
    attended: int
    """Per position attended to: a score and a weighted sum in every head."""

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
    """Floating-point operations of one step, summed over devices."""

    sampling: float
    """Each prompt once per group, then one token at a time."""
    learning: float
    """Forward and backward."""
    recomputed: float
    """Additional passes: for gradient checkpointing, the KL to the base, and old log-probabilities."""

    @property
    def total(self) -> float:
        return self.sampling + self.learning + self.recomputed


def forward_flops(multiply_adds: MultiplyAdds, work: Workload, *, prompts: int, adapted: bool) -> float:
    """Operations of one forward pass over a step's tokens, computing each group's prompt `prompts` times, and logits
    for completion tokens only.

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

    A trained matrix takes three products: the forward pass, the gradient of its input and its own gradient. A frozen
    matrix needs no gradient of its own, which is the third that LoRA saves: an N × N matrix costs (2 + 6r/N)/3 of full
    fine-tuning. Attention has no weights, so its backward pass is twice its forward pass with both methods. (The
    gradients of the very first layer's inputs, which LoRA does not compute, are counted too; they are small.)
    """
    forward = forward_flops(multiply_adds, work, prompts=prompts, adapted=method == "lora")
    if method == "full":
        return 3 * forward
    positions = prompts * work.prompt_tokens + work.completions * work.completion_tokens
    predicted = work.completions * work.completion_tokens
    saved = 2 * work.groups * (positions * multiply_adds.matrices + predicted * multiply_adds.head)
    return 3 * forward - saved


def step_flops(config: Config, meta_model: nn.Module, work: Workload, *, method: Method, device_type: str) -> StepFlops:
    """The operations of one step of this run, with LoRA or full fine-tuning, on `cpu` or `cuda`."""
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
        # Everything trained on after the first update is scored before it.
        recomputed += forward if epochs > 1 else forward * (updates - 1) / updates
    return StepFlops(
        sampling=forward_flops(multiply_adds, work, prompts=1, adapted=adapted),
        learning=epochs * learning_flops(multiply_adds, work, prompts=prompts, method=method),
        recomputed=recomputed,
    )
