"""Configuration and model → the memory that a rank will need, by part and by phase.

All sizes are GiB on one rank. A part counts in each phase that holds it; the phase with the largest sum must fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.capacity import kept_values, trainable_parameters
from rl_engine.plan.sizes import Widths
from rl_engine.policy.attention import SHARED_PROMPT, VARLEN, sees_padding
from rl_engine.policy.base_model import DTYPES, choose_attention, choose_layout, load_meta_model
from rl_engine.policy.logprobs import rows_at_once
from rl_engine.policy.lora.targets import match_targets, trains_head
from rl_engine.run.memory import GIB, Available
from rollout.engine import smallest_allowed_rank

FP32 = 4
PHASES = ("rollout", "learn", "sync")

# Resident memory of a process that has loaded torch, transformers, peft, DeepSpeed and vLLM, and of one grading process
# (docs/memory.md). The CUDA context is a usual figure, not measured.
LIBRARIES_GIB = 0.85
# Code that oneDNN keeps for every batch size, up to 1,024 of them: 0.25 to 0.5 in a run of the embedded model.
PRODUCTS_GIB = 0.3
GRADER_GIB = 0.08
CUDA_CONTEXT_GIB = 1.0
# What vLLM keeps on the GPU while it sleeps: CUDA graphs and workspaces, reported as 1 to 3 GiB; not measured here.
ASLEEP_GIB = 2.0
# The local cluster's own processes (docs/memory.md).
RAY_GIB = 0.6
# The CPU's allocator keeps freed blocks below 32 MiB, and micro-batches of different widths do not fit into each
# other's holes. This is the measured overhead as a share of the activations, once for the process and once for each
# run in it.
HEAP_SLACK = 0.25
HEAP = "heap slack"
# vLLM on the CPU holds its weights twice: as loaded, and packed for its matrix products.
CPU_SAMPLER_COPIES = 2
# Float32 arrays of a chunk's logits that are alive at once; those of the previous chunk are freed one by one. A trained
# head recomputes them in the backward pass, next to their gradients.
FROZEN_LOGITS, TRAINED_LOGITS = 5, 7
# The sampler's logits, log-probabilities, probabilities and random numbers, float32, one row per sequence.
SAMPLER_LOGITS = 5
# Largest size, in elements, of the float32 buffer through which DeepSpeed reduces gradients; on a CPU only the part in
# use takes memory.
ZERO_BUCKET = 500_000_000
WORTH_NAMING = 0.01
"""Share of a phase's memory below which changing a part's settings would not help."""
# vLLM's smallest token budget for prefill here (`rollout/vllm/engine.py`); its activations are a few rows wide.
PREFILL_TOKENS = 8192

SHARDING = ("learner.zero_stage",)
OFFLOAD = ("learner.zero_stage", "learner.offload_optimizer")
ACTIVATIONS = ("learner.tokens_per_microbatch", "learner.gradient_checkpointing", "sampling.max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that takes memory.

    Example: `Part(name="KV cache", gib=2.0, keys=("rollout.kv_cache_gib",))`
    """

    name: str
    gib: float
    phases: tuple[str, ...] = PHASES
    keys: tuple[str, ...] = ()
    """Settings that make it smaller."""
    on_host: bool = False
    """In a run on CUDA: whether it is in the machine's memory instead of the GPU's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one rank needs."""

    parts: tuple[Part, ...]

    def part(self, name: str) -> float:
        """GiB of the parts with that name; 0 if there is none."""
        return sum(part.gib for part in self.parts if part.name == name)

    def held(self, phase: str, *, on_host: bool = False) -> list[Part]:
        """The parts of a phase, largest first."""
        held = [part for part in self.parts if phase in part.phases and part.on_host == on_host]
        return sorted(held, key=lambda part: -part.gib)

    def needed(self, phase: str, *, on_host: bool = False) -> float:
        """Total GiB of a phase's parts."""
        return sum(part.gib for part in self.held(phase, on_host=on_host))


def layer_bytes(widths: Widths, size: int, row: int, attention: str = "sdpa") -> int:
    """Bytes per token that one decoder layer saves for its backward pass, in a precision of `size` bytes.

    Counted: the float32 input of the norms; the input of the first matrices of attention and feed-forward; queries,
    keys and values (repeated to all heads), the output of attention and its normalizer; what a token keeps for the
    `row` positions of its row (sdpa: the mask; eager: also every head's weights, in float32 and cast; shared prompts:
    the cast weights); in the feed-forward layer gate, activated gate, up and their product, or what another kind keeps
    (`Widths`); the float32 input of the norms of queries and keys, if there are any.
    Not counted: the rank-wide products of LoRA layers, and everything freed before the layer ends.
    """
    heads = widths.heads * widths.head_dim
    norms = widths.norms * FP32 * widths.hidden
    if widths.normed_heads:
        norms += FP32 * (heads + widths.kv_heads * widths.head_dim)
    inputs = 2 * size * widths.hidden
    of_a_position = {
        "flash_attention_2": 0,
        "sdpa": size,
        "eager": size + widths.heads * (FP32 + size),
        SHARED_PROMPT: widths.heads * size,
    }[attention]
    attended = 4 * size * heads + FP32 * widths.heads + row * of_a_position
    return norms + inputs + attended + int(widths.kept_in_feed_forward * size) * widths.intermediate


def activation_bytes(
    widths: Widths, size: int, tokens: int, row: int, *, checkpointing: bool, attention: str = "sdpa"
) -> int:
    """Bytes held at the end of the forward pass over `tokens` tokens in rows of `row`, plus the gradients of one layer
    in the backward pass.

    With gradient checkpointing each layer saves only its input, and one layer at a time is recomputed.
    """
    one = layer_bytes(widths, size, row, attention)
    kept = widths.layers * size * widths.hidden + one if checkpointing else widths.layers * one
    gradients = int(widths.kept_in_feed_forward * size) * widths.intermediate + 2 * FP32 * widths.hidden
    return tokens * (kept + gradients)


def expert_sum_bytes(config: Config, meta_model: nn.Module, size: int) -> int:
    """Bytes of W + B·A for all adapted stacks of experts, plus the gradient of one of them, in a precision of `size`
    bytes. PEFT materializes these sums in each forward pass and keeps them for the backward pass.

    With gradient checkpointing only one layer's sums exist at a time.
    """
    if config.method != "lora":
        return 0
    stacks: dict[str, list[int]] = {}
    for path, layer in match_targets(meta_model, config.lora.targets).items():
        if layer.experts:
            stacks.setdefault(path.rpartition(".")[0], []).append(size * layer.experts * layer.inputs * layer.outputs)
    if not stacks:
        return 0
    layers = [sum(of_layer) for of_layer in stacks.values()]
    kept = max(layers) if config.learner.gradient_checkpointing else sum(layers)
    return kept + max(max(of_layer) for of_layer in stacks.values())


def microbatch_tokens(config: Config) -> tuple[int, int]:
    """(padded tokens of the largest possible micro-batch, longest possible sample)."""
    longest = config.longest_sequence
    # A sample over the budget gets a micro-batch of its own.
    return max(longest, min(config.learner.tokens_per_microbatch, config.completions_per_step * longest)), longest


def estimate(config: Config, meta_model: nn.Module, ranks: int, *, gpu_gib: float | None = None) -> Memory:
    """What a rank will need.

    Args:
        config: The run's configuration.
        meta_model: See `rl_engine.policy.base_model.load_meta_model`.
        ranks: Number of processes that share what ZeRO shards.
        gpu_gib: Memory of the GPU; None for a run on the CPU. The sampler's share of it must be settled already
            (`rl_engine/plan/card.py`).
    """
    parts = [*learner_parts(config, meta_model, ranks, gpu_gib), *_sampling(config, meta_model, ranks, gpu_gib)]
    return Memory(parts=tuple(part for part in parts if part.gib > 0))


def learner_parts(config: Config, meta_model: nn.Module, ranks: int, gpu_gib: float | None) -> list[Part]:
    """What a rank will need besides the sampler; see `estimate`."""
    cuda = gpu_gib is not None
    total = sum(parameter.numel() for parameter in meta_model.parameters())
    trainable = trainable_parameters(config, meta_model)
    published, fixed = kept_values(config, meta_model)
    return [
        *_weights(config, total, trainable, fixed, ranks),
        *_optimizer(config, trainable, ranks, cuda),
        *_learning(config, meta_model, cuda),
        *_syncing(config, published, cuda),
        Part(name="libraries", gib=LIBRARIES_GIB, on_host=cuda),
        Part(name="matrix product code", gib=0.0 if cuda else PRODUCTS_GIB),
        Part(name="grading", gib=GRADER_GIB * (config.rewards.workers + 1), keys=("rewards.workers",), on_host=cuda),
        Part(name="CUDA context", gib=CUDA_CONTEXT_GIB if cuda else 0.0),
    ]


def _weights(config: Config, total: int, trainable: int, fixed: int, ranks: int) -> list[Part]:
    """The learner's weights. ZeRO-3 shards the whole trained model, except the fixed values that an adapter keeps
    besides its trained ones."""
    size = DTYPES[config.model.precision].itemsize
    share = ranks if config.learner.zero_stage == 3 else 1
    if config.method == "lora":
        return [
            Part(name="base weights", gib=total * size / share / GIB, keys=SHARDING),
            Part(name="adapter", gib=(trainable / share + fixed) * FP32 / GIB, keys=("lora.rank",)),
        ]
    # A layer's cast weights are kept for its backward pass, unless the layer is recomputed.
    cast_share = share if config.learner.gradient_checkpointing else 1
    cast = trainable * size / cast_share if size < FP32 else 0
    reference = total * size if config.loss.kl_coef > 0 else 0
    return [
        Part(name="master weights", gib=trainable * FP32 / share / GIB, keys=("method", *SHARDING)),
        Part(name="cast weights", gib=cast / GIB, phases=("learn",), keys=("method", *SHARDING)),
        Part(name="reference weights", gib=reference / share / GIB, keys=("loss.kl_coef", "method", *SHARDING)),
    ]


def _optimizer(config: Config, trainable: int, ranks: int, cuda: bool) -> list[Part]:
    """Gradients, Adam's moments, and DeepSpeed's own float32 copy of the shard it updates.

    Stage 1 shards the moments, stage 2 the gradients too. Offloading moves a rank's shards to the machine's memory; on
    the CPU they are there anyway.
    """
    stage = config.learner.zero_stage
    away = cuda and config.learner.offload_optimizer
    gib = trainable * FP32 / GIB
    keys = SHARDING if away else OFFLOAD if cuda else SHARDING
    moments = 2 * gib / (ranks if stage >= 1 else 1)
    gradients = gib / (ranks if stage >= 2 else 1)
    bucket = min(ZERO_BUCKET, trainable) * FP32 / GIB
    return [
        Part(name="gradients", gib=gradients, phases=("learn",), keys=keys, on_host=away and stage >= 2),
        Part(name="Adam's moments", gib=moments, keys=keys, on_host=away),
        Part(name="ZeRO's copy", gib=gib / ranks if stage >= 1 else 0.0, keys=keys, on_host=away),
        Part(name="ZeRO's bucket", gib=bucket if cuda and stage >= 1 else 0.0, phases=("learn",)),
    ]


def _kept_as(attention: str, layout: str, meta_model: nn.Module, cuda: bool) -> str:
    """The attention name for which `layer_bytes` counts as much as this one keeps: torch's fused kernels keep nothing
    that is quadratic in the row, as long as there is no mask."""
    if attention == VARLEN:
        return "flash_attention_2" if cuda else SHARED_PROMPT
    unmasked = attention == "sdpa" and layout == "padded" and not sees_padding(meta_model.config)
    return "flash_attention_2" if unmasked else attention


def _learning(config: Config, meta_model: nn.Module, cuda: bool) -> list[Part]:
    """What the forward and backward passes of the largest micro-batch hold."""
    widths = Widths.of(meta_model)
    size = DTYPES[config.model.precision].itemsize
    tokens, longest = microbatch_tokens(config)
    device_type = "cuda" if cuda else "cpu"
    layout = choose_layout(config, meta_model.config, device_type)
    checkpointing = config.learner.gradient_checkpointing
    attention = _kept_as(choose_attention(config, layout, meta_model.config, device_type), layout, meta_model, cuda)
    row = tokens if layout == "packed" and attention in ("sdpa", "eager") else longest
    held = activation_bytes(widths, size, tokens, row, checkpointing=checkpointing, attention=attention)
    copies = TRAINED_LOGITS if trains_head(meta_model, config.lora, config.method) else FROZEN_LOGITS
    rows = min(
        rows_at_once(widths.vocabulary, device_type),
        config.completions_per_step * config.sampling.max_tokens,
    )
    chunk = rows * widths.vocabulary * FP32 * copies
    keys = tuple(key for key in ACTIVATIONS if not (checkpointing and key == "learner.gradient_checkpointing"))
    experts = expert_sum_bytes(config, meta_model, size)
    sparing = () if checkpointing else ("learner.gradient_checkpointing",)
    return [
        Part(name="activations", gib=held / GIB, phases=("learn",), keys=keys),
        Part(name="experts with their updates", gib=experts / GIB, phases=("learn",), keys=("lora.targets", *sparing)),
        Part(name="logits chunk", gib=chunk / GIB, phases=("learn",)),
        Part(name=HEAP, gib=0.0 if cuda else heap_shares(1) * HEAP_SLACK * held / GIB, phases=("learn",), keys=keys),
    ]


def heap_shares(runs: int) -> int:
    """How many times `HEAP_SLACK` applies to a process with `runs` active runs."""
    return runs + 1


def _sampling(config: Config, meta_model: nn.Module, ranks: int, gpu_gib: float | None) -> list[Part]:
    """The sampler on this machine or, with a pool, this rank's share of the pool's workers."""
    rollout = config.rollout
    published, _ = kept_values(config, meta_model)
    if rollout.placement == "inprocess":
        if gpu_gib is not None:
            return _gpu_sampler(config, sum(parameter.numel() for parameter in meta_model.parameters()), gpu_gib)
        return _cpu_sampler(config, meta_model, published, config.train.problems_per_step)
    if rollout.address is not None:
        return []  # a cluster's workers may be anywhere
    worker = [Part(name="sampler libraries", gib=LIBRARIES_GIB)]
    if gpu_gib is None:
        worker += _cpu_sampler(config, meta_model, published, config.training_piece)
    # On CUDA, workers have their own GPUs.
    number = rollout.workers
    assert number != "max"  # only allowed with a cluster's address
    return [
        *(
            replace(
                part,
                name=f"{part.name}, {number} {'worker' if number == 1 else 'workers'}",
                gib=part.gib * number / ranks,
                phases=PHASES,  # workers may be sampling ahead
                keys=("rollout.workers", *part.keys),
                on_host=gpu_gib is not None,
            )
            for part in worker
        ),
        Part(name="Ray", gib=RAY_GIB / ranks, on_host=gpu_gib is not None),
    ]


def _cpu_sampler(config: Config, meta_model: nn.Module, published: int, prompts: int) -> list[Part]:
    """vLLM on the CPU, given `prompts` prompts at a time."""
    size = DTYPES[config.model.precision].itemsize
    widths = Widths.of(meta_model)
    total = sum(parameter.numel() for parameter in meta_model.parameters())
    if getattr(meta_model.config, "tie_word_embeddings", False):
        # vLLM keeps a tied output embedding as a separate matrix.
        total += widths.vocabulary * widths.hidden
    rows = min(config.rollout.max_num_seqs, prompts * config.sampling.n)
    logits = rows * widths.vocabulary * FP32 * SAMPLER_LOGITS
    prefill = PREFILL_TOKENS * size * (4 * widths.hidden + 4 * widths.intermediate)
    return [
        Part(name="sampler weights", gib=CPU_SAMPLER_COPIES * total * size / GIB),
        Part(name="sampler adapter", gib=_adapter_slots(config, published), keys=("lora.rank",)),
        Part(name="KV cache", gib=config.rollout.kv_cache_gib, keys=("rollout.kv_cache_gib",)),
        Part(
            name="sampler activations",
            gib=max(logits, prefill) / GIB,
            phases=("rollout",),
            keys=("rollout.max_num_seqs",),
        ),
    ]


def _adapter_slots(config: Config, published: int) -> float:
    """GiB of vLLM's adapter slot, padded to a rank that vLLM allows, and of the loaded adapters."""
    if config.method != "lora":
        return 0.0
    padded = smallest_allowed_rank(config.lora.served_rank) / (config.lora.served_factor * config.lora.rank)
    return published * (padded + 1 + config.rollout.max_staleness) * DTYPES[config.model.precision].itemsize / GIB


def _gpu_sampler(config: Config, total: int, gpu_gib: float) -> list[Part]:
    """vLLM reserves its whole share of the GPU for weights, cache and activations. While asleep it keeps the weights in
    the machine's memory, and on the GPU whatever it cannot release."""
    rollout = config.rollout
    size = DTYPES[config.model.precision].itemsize
    awake = ("rollout", "sync") if rollout.sleep else PHASES
    keys = ("rollout.memory_fraction",) if rollout.sleep else ("rollout.memory_fraction", "rollout.sleep")
    parts = [Part(name="sampler", gib=rollout.card_share * gpu_gib, phases=awake, keys=keys)]
    if rollout.sleep:
        kept = total * size / rollout.tensor_parallel_size / GIB
        parts.append(Part(name="sleeping sampler", gib=kept, keys=("rollout.sleep",), on_host=True))
        parts.append(Part(name="asleep on the card", gib=ASLEEP_GIB, phases=("learn",)))
    return parts


def _syncing(config: Config, published: int, cuda: bool) -> list[Part]:
    """The version being published to the sampler: float32 values on the CPU and, for a full model, their cast copy."""
    size = DTYPES[config.model.precision].itemsize
    copies = FP32 if config.method == "lora" else FP32 + size
    return [Part(name="version being published", gib=published * copies / GIB, phases=("sync",), on_host=cuda)]


def memory_of_run(config: Config, ranks: Ranks, meta_model: nn.Module | None = None) -> Memory:
    """The estimate for this run on this rank's device. `meta_model`: the model's shape, if the caller has it."""
    gpu_gib = None
    if ranks.device.type == "cuda":
        gpu_gib = torch.cuda.get_device_properties(ranks.device).total_memory / GIB
    return estimate(config, meta_model or load_meta_model(config.model), ranks.count, gpu_gib=gpu_gib)


def check_fits(memory: Memory, available: Available) -> None:
    """Raise `ConfigError` if a phase needs more than is available."""
    if why := shortage(memory, available):
        raise ConfigError(why)


def shortage(memory: Memory, available: Available) -> str:
    """The phase that needs more than is available, its largest part and what helps; empty if there is none."""
    for on_host, room in ((False, available.device_gib), (True, available.host_gib)):
        phase = max(PHASES, key=lambda name: memory.needed(name, on_host=on_host))
        needed = memory.needed(phase, on_host=on_host)
        if needed <= room:
            continue
        held = memory.held(phase, on_host=on_host)
        keys = list(dict.fromkeys(key for part in held if part.gib > WORTH_NAMING * needed for key in part.keys))
        where = "of host memory" if on_host else "of memory"
        return (
            f"this run would need about {needed:.1f} GiB {where} on each rank in its {phase} phase, and "
            f"{room:.1f} GiB are available. The largest part is {held[0].name}, {held[0].gib:.1f} GiB"
            + "".join(f"; then {part.name}, {part.gib:.1f} GiB" for part in held[1:3])
            + f". To need less, {'change ' + ', '.join(keys) if keys else 'take a smaller model'}; "
            "--dry-run shows every part"
        )
    return ""
