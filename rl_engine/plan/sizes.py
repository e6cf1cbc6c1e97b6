"""Configuration and model → the sizes that everything else is computed from: of a transformer, a step and the GPUs."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rollout.models import values_of_layers
from rollout.servable import layer_kinds

if TYPE_CHECKING:
    from torch import nn


# Kinds of layers, by their names in configurations, that have no keys and values: layers with a recurrent state, and
# layers without attention.
UNATTENDING = frozenset({"linear_attention", "mamba", "conv", "recurrent", "mlp", "moe"})
# Attributes whose product is the size of a layer's state: for Mamba, the gated delta rule, RG-LRU, Kimi and lightning
# attention.
STATES: tuple[tuple[str, ...], ...] = (
    ("intermediate_size", "ssm_state_size"),
    ("num_v_heads", "head_k_dim", "head_v_dim"),
    ("lru_width",),
    ("num_heads", "head_dim", "head_dim"),
    ("num_attention_heads", "head_dim", "head_dim"),
)
# Families whose states vLLM keeps in float32, whatever the model's precision.
EXACT_STATES = frozenset({"nemotron_h", "kimi_linear"})
EXACT = "mamba_ssm_dtype"
"""The key by which a configuration says so itself (Qwen3.5)."""
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
"""Where the classes of activations are defined."""
NORMS_OF_QUERIES = ("q_norm", "q_layernorm", "query_layernorm")
"""What families call the norm of queries, if they have one."""
SHARED_EXPERTS = ("shared_expert_intermediate_size", "shared_intermediate_size")
"""Names, in different families, of the width of the experts that every token passes through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """The sizes of a transformer that determine its activations, caches and matrix products; the largest if its layers
    differ."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    """Head size of queries and keys."""
    value_dim: int
    attending: int
    """Layers that attend to other positions."""
    kv_layers: int
    """Layers with keys and values of their own."""
    conv_state: int
    """Number of inputs that the convolutions keep per sequence, over all layers."""
    recurrent_state: int
    """Number of values in a sequence's states, over all layers."""
    exact_states: bool
    """Whether the sampler keeps these states in float32."""
    kv_values: int
    """Number of values that one token has in the cache of one layer: keys and values of its heads, or the latent that
    they are recomputed from (DeepSeek)."""
    intermediate: int
    """Total width of the feed-forward layers that one token passes through; in a mixture, of all active and all shared
    experts."""
    kept_in_feed_forward: float
    """Number of tensors of that width that a feed-forward layer keeps for its backward pass."""
    vocabulary: int
    norms: int
    """Norms of hidden states in a layer: two before its parts, as a rule; some families have two behind them as well
    (Gemma 2), or one in all (Cohere)."""
    normed_heads: bool
    """Whether queries and keys pass through a norm of their own (Qwen3)."""

    @classmethod
    def of(cls, meta_model: nn.Module) -> Widths:
        text_config: Any = meta_model.config.get_text_config()  # type: ignore[operator, union-attr]

        def largest(name: str) -> Any:
            return max(values_of_layers(text_config, name), default=0)

        # Families without attention have no such key.
        heads = largest("num_attention_heads") or 1
        kv_heads = largest("num_key_value_heads") or heads
        head_dim = largest("head_dim") or text_config.hidden_size // heads
        # With a latent, `head_dim` covers only the rotary part.
        rotated, latent = largest("qk_rope_head_dim"), largest("kv_lora_rank")
        head_dim = largest("qk_nope_head_dim") + rotated if latent else head_dim
        value_dim = largest("v_head_dim") or head_dim
        experts = largest("num_experts_per_tok") or largest("top_k_experts")
        dense = largest("intermediate_size") or 4 * text_config.hidden_size
        expert = largest("moe_intermediate_size") or dense
        # Llama 4 uses the plain name for the width of its experts.
        between = largest("intermediate_size_mlp")
        shared = largest("n_shared_experts") * expert or max(map(largest, SHARED_EXPERTS))
        if largest("top_k_experts"):
            shared = dense  # Gemma 4 has a dense layer next to its experts
        kinds = layer_kinds(meta_model.config)
        attending = sum(kind not in UNATTENDING for kind in kinds) if kinds else text_config.num_hidden_layers
        conv_state, recurrent_state = _states(meta_model)
        widest, kept = _feed_forward(meta_model)
        return cls(
            hidden=text_config.hidden_size,
            layers=text_config.num_hidden_layers,
            attending=attending,
            kv_layers=attending - largest("num_kv_shared_layers"),
            conv_state=conv_state,
            recurrent_state=recurrent_state,
            exact_states=text_config.model_type in EXACT_STATES or "float32" in values_of_layers(text_config, EXACT),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            kv_values=latent + rotated if latent else kv_heads * (head_dim + value_dim),
            intermediate=max(experts * expert + shared, between) if experts else widest or dense,
            kept_in_feed_forward=kept,
            vocabulary=text_config.vocab_size,
            norms=_norms(meta_model) // text_config.num_hidden_layers or 2,
            normed_heads=any(name.endswith(NORMS_OF_QUERIES) for name, _ in meta_model.named_modules()),
        )

    def kv_bytes(self, size: int) -> int:
        """Bytes of one token's keys and values, in a precision of `size` bytes."""
        return self.kv_layers * self.kv_values * size

    def state_bytes(self, size: int) -> int:
        """Bytes of one sequence's states, whatever its length."""
        return self.conv_state * size + self.recurrent_state * (4 if self.exact_states else size)

    def sequence_bytes(self, tokens: float, size: int) -> float:
        """Bytes that a sequence of `tokens` tokens takes in the sampler's cache."""
        return tokens * self.kv_bytes(size) + self.state_bytes(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run passes through the model.

    Example: `Workload(steps=300, groups=32, completions=16, prompt_tokens=1024, completion_tokens=8192)`
    """

    steps: int
    groups: int
    """Prompts per step."""
    completions: int
    """Completions per prompt."""
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, config: Config, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> Workload:
        """The run's workload, with the given lengths or else the longest allowed."""
        return cls(
            steps=config.train.steps,
            groups=config.train.problems_per_step,
            completions=config.sampling.n,
            prompt_tokens=prompt_tokens or config.data.max_prompt_tokens,
            completion_tokens=completion_tokens or config.sampling.max_tokens,
        )

    @property
    def episodes(self) -> int:
        """Completions per step."""
        return self.groups * self.completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """GPUs of one kind.

    Example: `Devices(count=8, gib=80.0)`
    """

    count: int
    gib: float

    @classmethod
    def parse(cls, text: str) -> Devices:
        """Parse `8x80` or `8x80GiB`. Raises `ConfigError` for anything else."""
        count, _, gib = text.lower().removesuffix("gib").partition("x")
        try:
            devices = cls(count=int(count), gib=float(gib))
        except ValueError as error:
            raise ConfigError(f"--devices: {text!r} is not COUNTxGIB, as in 8x80") from error
        if devices.count < 1 or not 0 < devices.gib < math.inf:
            raise ConfigError(f"--devices: {text!r}; expected a count of at least 1 and a memory above 0 GiB")
        return devices


def _states(meta_model: nn.Module) -> tuple[int, int]:
    """(`conv_state`, `recurrent_state`) of `Widths`, read from the instantiated layers: those with a convolution over
    positions, and those with a decay (lightning attention)."""
    from torch.nn import Conv1d

    from rl_engine.policy.logprobs import decoder_of  # heavy; a command may fail before it is needed

    conv = recurrent = 0
    for module in decoder_of(meta_model).modules():
        convs = [child for child in module.children() if isinstance(child, Conv1d)]
        if not convs and not hasattr(module, "slope_rate"):
            continue
        conv += sum(one.in_channels * (one.kernel_size[0] - 1) for one in convs)
        sizes = [[getattr(module, name, 0) for name in names] for names in STATES]
        recurrent += next((math.prod(found) for found in sizes if all(found)), 0)
    return conv, recurrent


def _norms(meta_model: nn.Module) -> int:
    """Number of norms with weights over whole hidden states."""
    from rl_engine.policy.logprobs import decoder_of  # heavy; a command may fail before it is needed

    hidden = meta_model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
    of_heads = ("q_norm.weight", "k_norm.weight")
    return sum(
        path.endswith("weight") and parameter.shape == (hidden,) and not path.endswith(of_heads)
        for path, parameter in decoder_of(meta_model).named_parameters()
    )


def _feed_forward(meta_model: nn.Module) -> tuple[int, float]:
    """(width of the widest feed-forward layer, `kept_in_feed_forward`), read from its instantiated down projection;
    0 and what a gated layer with SiLU keeps if none is found. Some families use another width than their configuration
    states (LFM2 two thirds of it, RecurrentGemma half)."""
    from torch.nn import Linear

    from rl_engine.policy.lora.targets import group_of  # heavy; a command may fail before it is needed

    hidden = meta_model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
    found = [
        (module.in_features, path.rpartition(".")[0])
        for path, module in meta_model.named_modules()
        if isinstance(module, Linear) and module.out_features == hidden and group_of(path) == "mlp"
    ]
    if not found:
        return 0, 4.0
    width, path = max(found)
    around = meta_model.get_submodule(path)
    ups = [one.out_features for one in around.children() if isinstance(one, Linear) and one.in_features == hidden]
    is_gated = not ups or sum(ups) >= 2 * width
    return width, _kept_by_activation(around) + 2.0 * is_gated  # the gate, and its product with what it gates


def _kept_by_activation(feed_forward: nn.Module) -> float:
    """Number of tensors as wide as its input that the activation keeps for its backward pass, with its result, which
    the next matrix product keeps: one of ReLU, two of a kernel, five where each step of a formula is computed by
    itself (gelu_new)."""
    import torch

    found = [one for one in feed_forward.children() if type(one).__module__ in ACTIVATIONS]
    if not found:
        return 2.0
    activation = copy.deepcopy(found[0]).to_empty(device="cpu")
    given = torch.ones(256, requires_grad=True).clone()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == given.shape:
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(activation(given))
    return sum(kept.values()) / given.nbytes
