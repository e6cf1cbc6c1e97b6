"""Configuration and a model's shape → what a run asks for: parameters, bits to learn, floating-point operations.

Nothing here is measured. A multiply-add is two operations (FLOP); padding, norms and softmax are not counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import nn

from rl_engine.config import Config, LoraConfig
from rl_engine.learner.objective import needs_base, needs_old_logprobs
from rl_engine.plan.learning_rate import Method
from rl_engine.plan.memory import Widths
from rl_engine.policy.attention import NAME as SHARED
from rl_engine.policy.base_model import choose_layout
from rl_engine.policy.targets import Shape, adaptable, coverage_of, expert_rank, group_of, head_of, match_targets

# LoRA Without Regret: a LoRA holds about two bits a parameter, and a policy gradient learns about one bit an episode.
BITS_PER_PARAMETER = 2
BITS_PER_EPISODE = 1
RANKS = range(1, 513)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run passes through the model.

    Example: `Workload(steps=300, groups=32, completions=16, prompt_tokens=1024, completion_tokens=8192, bits=153600)`
    """

    steps: int
    groups: int
    """Prompts of a step."""
    completions: int
    """Of each prompt."""
    prompt_tokens: int
    completion_tokens: int
    bits: float
    """Most that the whole run can teach."""

    @property
    def episodes(self) -> int:
        """Completions of a step."""
        return self.groups * self.completions


def reinforcement(config: Config, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> Workload:
    """The run's completions, each at the given length or else at the longest allowed.

    One bit an episode is the most: groups without signal teach nothing.
    """
    groups, completions = config.train.problems_per_step, config.sampling.n
    return Workload(
        steps=config.train.steps,
        groups=groups,
        completions=completions,
        prompt_tokens=prompt_tokens or config.data.max_prompt_tokens,
        completion_tokens=completion_tokens or config.sampling.max_tokens,
        bits=BITS_PER_EPISODE * config.train.steps * groups * completions,
    )


def supervised_bits(tokens: int, loss_nats: float) -> float:
    """What supervised tokens, each counted once, can teach: their log loss, in the first epoch about
    0.69 nats or one bit each."""
    return tokens * loss_nats / math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the trained parameters can hold, against what the run can teach, in bits."""

    bits: int
    taught: float
    rank: int | None
    """The smallest rank that holds it all; None where none does, or where every weight learns."""

    @property
    def share(self) -> float:
        return self.taught / self.bits


def parameters_by_group(config: Config, shape: nn.Module) -> dict[str, int]:
    """Parameters that learn, by kind of layer."""
    if config.method == "lora":
        return coverage_of(shape, config.lora).by_group
    groups: dict[str, int] = {}
    for name, parameter in shape.named_parameters():
        groups[group_of(name)] = groups.get(group_of(name), 0) + parameter.numel()
    return groups


def capacity_of(shape: nn.Module, lora: LoraConfig, method: Method, taught: float) -> Capacity:
    """Two bits a trained parameter, and the smallest rank that holds the `taught` bits."""

    def bits(rank: int) -> int:
        return BITS_PER_PARAMETER * coverage_of(shape, lora.model_copy(update={"rank": rank})).trainable

    if method == "full":
        trainable = sum(parameter.numel() for parameter in shape.parameters())
        return Capacity(bits=BITS_PER_PARAMETER * trainable, taught=taught, rank=None)
    index = bisect_left(RANKS, taught, key=bits)
    return Capacity(bits=bits(lora.rank), taught=taught, rank=RANKS[index] if index < len(RANKS) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Multiply-adds of one token passing forward."""

    matrices: int
    """Of all linear layers but the output embedding; of a mixture, of the experts a token passes through."""
    adapter: int
    """Of the rank-wide matrices beside them."""
    head: int
    """Of the output embedding."""
    head_adapter: int
    attended: int
    """For each position that is attended to: a score and a weighted sum in every head."""

    @classmethod
    def of(cls, shape: nn.Module, lora: LoraConfig) -> Products:
        widths = Widths.of(shape)
        active = int(getattr(shape.config, "num_experts_per_tok", None) or 1)
        head, targets = head_of(shape), match_targets(shape, lora.targets)

        def low(layer: Shape) -> int:
            if layer.experts:
                return active * expert_rank(shape, lora) * (layer.inputs + layer.outputs)
            return lora.rank * (layer.inputs + layer.outputs)

        return cls(
            matrices=sum(
                layer.inputs * layer.outputs * (active if layer.experts else 1) for layer in adaptable(shape).values()
            ),
            adapter=sum(low(layer) for path, layer in targets.items() if path not in head),
            head=widths.vocabulary * widths.hidden,
            head_adapter=sum(low(layer) for path, layer in targets.items() if path in head),
            attended=2 * widths.layers * widths.heads * widths.head_dim,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one step, all devices together."""

    sampling: float
    """Prompts once a group, then a token at a time."""
    learning: float
    """Forward and backward."""
    again: float
    """Passes that are made once more: for gradient checkpointing, for the KL to the base, for old log-probabilities."""


def forward_flops(products: Products, work: Workload, *, prompts: int, adapted: bool) -> float:
    """One pass over a step's tokens, each prompt passed `prompts` times, logits of completion tokens alone.

    A position attends to itself and to all before it: Σ t = n(n + 1)/2.
    """

    def triangle(tokens: int) -> float:
        return tokens * (tokens + 1) / 2

    whole = work.prompt_tokens + work.completion_tokens
    positions = prompts * work.prompt_tokens + work.completions * work.completion_tokens
    seen = prompts * triangle(work.prompt_tokens) + work.completions * (triangle(whole) - triangle(work.prompt_tokens))
    predicted = work.completions * work.completion_tokens
    each = products.matrices + (products.adapter if adapted else 0)
    head = products.head + (products.head_adapter if adapted else 0)
    return 2 * work.groups * (positions * each + seen * products.attended + predicted * head)


def learning_flops(products: Products, work: Workload, *, prompts: int, method: Method) -> float:
    """Forward and backward over a step's tokens.

    A trained matrix is multiplied with three times: forward, for the gradient of its input, for its own. A frozen one
    needs no gradient of its own: that is the third which LoRA saves, (2 + 6r/N)/3 of an N × N matrix. Attention has no
    weights: its backward pass is twice its forward pass in both. (Counted with it, and small: the gradients of the very
    first layer's inputs, which LoRA does not compute.)
    """
    adapted = method == "lora"
    forward = forward_flops(products, work, prompts=prompts, adapted=adapted)
    if method == "full":
        return 3 * forward
    positions = prompts * work.prompt_tokens + work.completions * work.completion_tokens
    predicted = work.completions * work.completion_tokens
    saved = 2 * work.groups * (positions * products.matrices + predicted * products.head)
    return 3 * forward - saved


def step_flops(config: Config, shape: nn.Module, work: Workload, *, method: Method, device: str) -> StepFlops:
    """What one step of this run asks for, with LoRA or with every weight learning, on `cpu` or `cuda`."""
    products = Products.of(shape, config.lora)
    adapted = method == "lora"
    layout = choose_layout(config, shape.config, torch.device(device))
    prompts = 1 if layout == SHARED else work.completions
    forward = forward_flops(products, work, prompts=prompts, adapted=adapted)
    base = forward_flops(products, work, prompts=prompts, adapted=False)
    logits = 2 * work.episodes * work.completion_tokens * (products.head + adapted * products.head_adapter)
    trains_head = method == "full" or products.head_adapter > 0
    again = (forward - logits) * config.learner.gradient_checkpointing + logits * trains_head
    again += base * needs_base(config.loss)
    again += forward * needs_old_logprobs(config.loss, config.learner.updates_per_step)
    return StepFlops(
        sampling=forward_flops(products, work, prompts=1, adapted=adapted),
        learning=learning_flops(products, work, prompts=prompts, method=method),
        again=again,
    )
