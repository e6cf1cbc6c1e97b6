"""Model → the layers that an adapter covers, and the number of its parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.other import get_pattern_key
from peft.utils.transformers_weight_conversion import (  # type: ignore[attr-defined]
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
)
from torch import nn

from rl_engine.config import LoraConfig, Method
from rl_engine.config.hints import near
from rollout.models import values_of_layers

PRESETS = ("all", "mlp", "attention")
HEAD = "+lm_head"
# Names of layers that tell their kind where those of their blocks do not (OPT, Nemotron-H, RecurrentGemma).
ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
FEED_FORWARD = frozenset({"gate_proj", "up_proj", "down_proj", "fc1", "fc2"})
SHARED = "shared by all"
"""The group name of trained parameters that belong to no single layer."""


class LayerSize(NamedTuple):
    """The sizes of a target: a linear layer, or the stacked layers of a mixture's experts."""

    inputs: int
    outputs: int
    experts: int = 0

    def parameters(self, rank: int) -> int:
        return rank * (self.inputs + self.outputs) * max(self.experts, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The layers that an adapter covers, and its numbers of parameters.

    Example: `Coverage(modules=("model.layers.0.mlp.up_proj", …), trainable=27648, total=1_800_000, …)`
    """

    modules: tuple[str, ...]
    trainable: int
    published: int
    """Number of values in A and B of the published adapter."""
    fixed: int
    """Number of values kept besides the trained ones: a start to subtract, or directions and projections."""
    total: int
    """Parameters of the base model."""
    by_group: dict[str, int]
    """Trainable parameters by kind of layer."""

    def describe(self) -> str:
        groups = ", ".join(f"{name} {count:,}" for name, count in self.by_group.items())
        return (
            f"{len(self.modules)} modules, {self.trainable:,} trainable of {self.total:,} parameters "
            f"({self.trainable / self.total:.3%}): {groups}"
        )


def group_of(module: str) -> str:
    """The kind of layer a linear module belongs to, from its path."""
    if "attn" in module or "attention" in module:
        return "attention"
    if any(word in module for word in ("mlp", "feed_forward", "ffn", "experts")):
        return "mlp"
    names = {*module.split(".")}
    return "attention" if names & ATTENTION else "mlp" if names & FEED_FORWARD else "other"


def adaptable(model: nn.Module) -> dict[str, LayerSize]:
    """Every linear layer of the language model except the output embedding, and every stack of experts, by path."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    inside = _language_model(model)
    found = {}
    for path, module in model.named_modules():
        if not path.startswith(inside):
            continue
        # A router may subclass nn.Linear and choose experts in its forward pass (Llama 4).
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and module is not head:
            found[path] = LayerSize(module.in_features, module.out_features)
        if path.endswith("experts"):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    experts, outputs, inputs = parameter.shape
                    found[f"{path}.{name}"] = LayerSize(inputs, outputs, experts)
    return found


def _language_model(model: nn.Module) -> str:
    """The prefix of the language model's paths: empty, except in a wrapper around a language model."""
    model_config: Any = model.config
    if model_config.get_text_config() is model_config:
        return ""
    decoder = model.get_decoder()  # type: ignore[operator]
    return next(f"{path}." for path, module in model.named_modules() if module is decoder)


def head_of(model: nn.Module) -> dict[str, LayerSize]:
    """The output embedding, by its path."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        path: LayerSize(module.in_features, module.out_features)
        for path, module in model.named_modules()
        if module is head and isinstance(module, nn.Linear)
    }


def match_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, LayerSize]:
    """The layers that a preset or a list of names selects, by path.

    Raises `ValueError` for a name that matches nothing, suggesting the nearest that would.
    """
    layers = adaptable(model)
    if not layers:
        kind = model.config.model_type  # type: ignore[union-attr]
        raise ValueError(
            f"lora.targets: model type {kind} has no layers of class nn.Linear (GPT-2 has a class of its own), so "
            "nothing in it can be adapted or counted: use another model"
        )
    if isinstance(targets, str) and targets.removesuffix(HEAD) in PRESETS:
        preset = targets.removesuffix(HEAD)
        matched = {
            path: layer
            for path, layer in layers.items()
            if preset in ("all", group_of(path)) and not _refused_by_peft(model, path)
        }
        if not matched:
            raise ValueError(
                f"lora.targets: the preset {preset!r} matches no layer of this model; name some of its linear layers: "
                f"{', '.join(sorted({path.rpartition('.')[2] for path in layers}))}"
            )
        return {**matched, **head_of(model)} if targets.endswith(HEAD) else matched
    layers |= head_of(model)
    wanted = (targets,) if isinstance(targets, str) else targets
    leaves = sorted({path.rpartition(".")[2] for path in layers})
    for target in wanted:
        if not any(_is_named(path, target) for path in layers):
            found = near(target, [*leaves, *PRESETS])
            hint = f"; the nearest name is {found!r}" if found else ""
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer{hint} "
                f"(presets: {', '.join(PRESETS)}, each with {HEAD} or without; layers: {', '.join(leaves)})"
            )
    matched = {path: layer for path, layer in layers.items() if any(_is_named(path, target) for target in wanted)}
    if refused := [path for path in matched if _refused_by_peft(model, path)]:
        raise ValueError(
            f"lora.targets: PEFT cannot adapt {refused[0]} in model type {model.config.model_type}, "  # type: ignore[union-attr]
            "whose kernels use the layer's weight without calling the layer: leave it out"
        )
    return matched


def _refused_by_peft(model: nn.Module, path: str) -> bool:
    try:
        _check_lora_target_modules_mamba(PeftLoraConfig(), model, path.rpartition(".")[2])
    except ValueError:
        return True
    return False


def _is_named(path: str, target: str) -> bool:
    """Whether `target` is a layer's path or its last components."""
    return path == target or path.endswith("." + target)


def trains_head(model: nn.Module, config: LoraConfig, method: Method) -> bool:
    """Whether the output embedding is trained, directly or through an adapter."""
    return method == "full" or not head_of(model).keys().isdisjoint(match_targets(model, config.targets))


def experts_per_token(model: Any) -> int:
    """Number of experts per layer that a token passes through; 1 for a dense model. Wrappers around a language model
    keep it in the language model's configuration."""
    text_config = model.config.get_text_config()
    names = ("num_experts_per_tok", "top_k_experts")
    return max([1, *(int(count) for name in names for count in values_of_layers(text_config, name))])


def expert_rank(model: Any, config: LoraConfig) -> int:
    """Rank of each expert's update. `auto` divides the rank among the experts that a token passes through, so that a
    token meets as many trained parameters as in a dense layer (LoRA Without Regret)."""
    if config.expert_rank != "auto":
        return config.expert_rank
    return max(1, config.rank // experts_per_token(model))


def rank_of(path: str, config: LoraConfig) -> int:
    """A layer's rank by PEFT's own rule: that of the first pattern that matches it, or else `lora.rank`."""
    return config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), path), config.rank)


def alpha_of(path: str, config: LoraConfig) -> float:
    """A layer's alpha, by the same rule as `rank_of`."""
    return config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), path), config.alpha)


def is_by_weight(model: Any, path: str) -> bool:
    """Whether a linear layer must be given to PEFT by its weight's name. In families whose experts were linear layers
    before transformers stacked them, PEFT takes any layer with an expert's old name, even one in a dense or shared
    feed-forward layer, for an expert, and adapts the stacks instead."""
    older = _MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type, ""), {})
    return path.rpartition(".")[2] in older


def refuse_idle_patterns(matched: dict[str, LayerSize], config: LoraConfig) -> None:
    """Raise `ValueError` for a pattern that matches no adapted layer, or that matches experts: `expert_rank` sets their
    rank."""
    for key, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for name in pattern:
            named = [layer for path, layer in matched.items() if get_pattern_key([name], path) == name]
            if not named or any(layer.experts for layer in named):
                leaves = sorted({path.rpartition(".")[2] for path, layer in matched.items() if not layer.experts})
                found = near(name, leaves)
                hint = f"the nearest is {found!r}" if found else f"there are {', '.join(leaves)}"
                raise ValueError(f"lora.{key}: {name!r} names no adapted linear layer; {hint}")


def dimensions(matched: dict[str, LayerSize], config: LoraConfig) -> int:
    """Dimension of the space of updates within the layers' fixed directions: the sum of rank² over layers."""
    return sum(rank_of(path, config) ** 2 for path in matched)


def refuse_idle_numbers(matched: dict[str, LayerSize], config: LoraConfig) -> None:
    """Raise `ValueError` if the rank exceeds the number of a layer's directions, or if there are more trained numbers
    than dimensions: updates of rank r span r² dimensions per layer, and any further numbers would be redundant."""
    for path, layer in matched.items():
        most = min(layer.inputs, layer.outputs)
        if rank_of(path, config) > most:
            raise ValueError(
                f"lora.rank is {rank_of(path, config)} at {path}, and lora.init {config.init} finds {most} singular "
                f"directions there: give {most} or less"
            )
    room = dimensions(matched, config)
    if config.numbers > room:
        enough = math.isqrt((config.numbers - 1) // len(matched)) + 1
        raise ValueError(
            f"lora.numbers is {config.numbers}, and {len(matched)} layers of lora.rank {config.rank} have {room} "
            f"dimensions, rank² of each: give fewer, or lora.rank={enough}"
        )


def layers_below_rank(model: nn.Module, config: LoraConfig) -> dict[str, int]:
    """Each layer that is smaller than its rank → its smaller side, which is the highest rank of any update there."""
    sides = {}
    for path, layer in match_targets(model, config.targets).items():
        rank = expert_rank(model, config) if layer.experts else rank_of(path, config)
        if (side := min(layer.inputs, layer.outputs)) < rank:
            sides[path] = side
    return sides


def coverage_of(model: nn.Module, config: LoraConfig) -> Coverage:
    """What an adapter with this configuration adds: rank × (inputs + outputs) values per layer or expert. All of them
    are trained, unless the layers share a few trained numbers instead."""
    matched = match_targets(model, config.targets)
    refuse_idle_patterns(matched, config)
    if config.is_tiny:
        refuse_idle_numbers(matched, config)
    by_group: dict[str, int] = {}
    for path, layer in matched.items():
        size = layer.parameters(expert_rank(model, config) if layer.experts else rank_of(path, config))
        by_group[group_of(path)] = by_group.get(group_of(path), 0) + size
    published = config.served_factor * sum(by_group.values())
    fixed = published - sum(by_group.values())
    if config.is_tiny:
        by_group = {SHARED: config.numbers}
        fixed = published + config.numbers * dimensions(matched, config)
    return Coverage(
        modules=tuple(matched),
        trainable=sum(by_group.values()),
        published=published,
        fixed=fixed,
        total=sum(parameter.numel() for parameter in model.parameters()),
        by_group=by_group,
    )
