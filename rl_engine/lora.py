"""Model → model with a LoRA adapter: which layers, and what that comes to. The only file that imports peft."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rl_engine.config import LoraConfig

PRESETS = ("all", "mlp", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What an adapter touches.

    Example: `Coverage(modules=("model.layers.0.mlp.up_proj", …), trainable=27648, total=1_800_000, …)`
    """

    modules: tuple[str, ...]
    trainable: int
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
    return "other"


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer but the output embedding, by its path."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def match_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear layers that a preset or a list of names means, by path.

    Raises `ValueError` for a name that matches nothing, with the nearest that would.
    """
    linears = linear_modules(model)
    if targets == "all":
        return linears
    if targets in PRESETS:
        matched = {name: module for name, module in linears.items() if group_of(name) == targets}
        if not matched:
            raise ValueError(f"lora.targets: the preset {targets!r} matches no layer of this model")
        return matched
    wanted = (targets,) if isinstance(targets, str) else targets
    leaves = sorted({name.rpartition(".")[2] for name in linears})
    for target in wanted:
        if not any(_names(target, path) for path in linears):
            near = difflib.get_close_matches(target, [*leaves, *PRESETS], n=1, cutoff=0)
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer; the nearest name is {near[0]!r} "
                f"(presets: {', '.join(PRESETS)}; layers: {', '.join(leaves)})"
            )
    return {path: module for path, module in linears.items() if any(_names(target, path) for target in wanted)}


def _names(target: str, path: str) -> bool:
    return path == target or path.endswith("." + target)


def coverage_of(model: nn.Module, config: LoraConfig) -> Coverage:
    """What an adapter of this configuration adds: rank × (inputs + outputs) for each matched layer."""
    matched = match_targets(model, config.targets)
    by_group: dict[str, int] = {}
    for path, module in matched.items():
        size = config.rank * (module.in_features + module.out_features)
        by_group[group_of(path)] = by_group.get(group_of(path), 0) + size
    return Coverage(
        modules=tuple(matched),
        trainable=sum(by_group.values()),
        total=sum(parameter.numel() for parameter in model.parameters()),
        by_group=by_group,
    )


def meta_model(model: str, revision: str | None) -> nn.Module:
    """The model's shape without its weights, from its config alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, revision=revision))  # type: ignore[no-any-return]


def add_adapter(model: nn.Module, config: LoraConfig, seed: int) -> tuple[PeftModel, Coverage]:
    """Freeze the model and add the adapter, in float32: A uniform in ±1/√d_in, B zero, scale α/r.

    A's values are drawn from `seed` and nothing else.
    """
    coverage = coverage_of(model, config)
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the base model is {parameter.dtype} at {name}; bfloat16 and float32 are supported")
    # Leaf names where they mean just these layers, so that adapter_config.json stays readable.
    leaves = sorted({path.rpartition(".")[2] for path in coverage.modules})
    exact = set(match_targets(model, tuple(leaves))) == set(coverage.modules)
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        # PEFT calls it an integer and divides by the rank: fractions work, whole numbers are written as such.
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,  # type: ignore[arg-type]
        target_modules=leaves if exact else list(coverage.modules),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, peft_config, autocast_adapter_dtype=True)
    assert isinstance(adapted, PeftModel)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == coverage.trainable, (trainable, coverage.trainable)
    return adapted, coverage


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The trained parameters under the names PEFT saves them by."""
    return {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def peft_config_of(model: PeftModel, base_model: str) -> dict[str, Any]:
    """What goes into adapter_config.json: PEFT's own fields, with the base model as the user named it."""
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = base_model
    config["inference_mode"] = True
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
