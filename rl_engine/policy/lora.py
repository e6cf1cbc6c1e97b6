"""Model → model with a LoRA adapter: which layers, and what that comes to."""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

from rl_engine.config import Config, LoraConfig
from rl_engine.config.starts import STARTS, served_alpha_factor, served_factor, served_rank
from rl_engine.policy.base_model import load_causal_lm
from rl_engine.policy.lora_linear import LoraLinear
from rl_engine.policy.lora_start import fit_to_activations, put, read_adapter, unchanged
from rollout.adapters import PEFT_CONFIG, PEFT_WEIGHTS
from rollout.models import locate_model

if TYPE_CHECKING:
    from rl_engine.policy.trainable import Score

PRESETS = ("all", "mlp", "attention")
HEAD = "+lm_head"


class Shape(NamedTuple):
    """What a target maps: a linear layer, or the stacked layers of a mixture's experts."""

    inputs: int
    outputs: int
    experts: int = 0

    def parameters(self, rank: int) -> int:
        return rank * (self.inputs + self.outputs) * max(self.experts, 1)


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


def adaptable(model: nn.Module) -> dict[str, Shape]:
    """Every linear layer but the output embedding, and every stack of experts, by path."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            found[path] = Shape(module.in_features, module.out_features)
        if path.endswith("experts"):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    experts, outputs, inputs = parameter.shape
                    found[f"{path}.{name}"] = Shape(inputs, outputs, experts)
    return found


def head_of(model: nn.Module) -> dict[str, Shape]:
    """The output embedding, by its path."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        path: Shape(module.in_features, module.out_features)
        for path, module in model.named_modules()
        if module is head and isinstance(module, nn.Linear)
    }


def match_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, Shape]:
    """The layers that a preset or a list of names means, by path.

    Raises `ValueError` for a name that matches nothing, with the nearest that would.
    """
    layers = adaptable(model)
    if isinstance(targets, str) and targets.removesuffix(HEAD) in PRESETS:
        preset = targets.removesuffix(HEAD)
        matched = {path: shape for path, shape in layers.items() if preset in ("all", group_of(path))}
        if not matched:
            raise ValueError(f"lora.targets: the preset {preset!r} matches no layer of this model")
        return {**matched, **head_of(model)} if targets.endswith(HEAD) else matched
    layers |= head_of(model)
    wanted = (targets,) if isinstance(targets, str) else targets
    leaves = sorted({path.rpartition(".")[2] for path in layers})
    for target in wanted:
        if not any(_names(target, path) for path in layers):
            near = difflib.get_close_matches(target, [*leaves, *PRESETS], n=1, cutoff=0)
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer; the nearest name is {near[0]!r} "
                f"(presets: {', '.join(PRESETS)}, each with {HEAD} or without; layers: {', '.join(leaves)})"
            )
    return {path: shape for path, shape in layers.items() if any(_names(target, path) for target in wanted)}


def _names(target: str, path: str) -> bool:
    return path == target or path.endswith("." + target)


def expert_rank(model: Any, config: LoraConfig) -> int:
    """Rank of each expert's update: with `auto` the rank is shared out among the experts that a token passes through,
    so that it meets as many trained parameters as in a dense layer (LoRA Without Regret)."""
    if config.expert_rank != "auto":
        return config.expert_rank
    return max(1, config.rank // int(getattr(model.config, "num_experts_per_tok", None) or 1))


def rank_of(path: str, config: LoraConfig) -> int:
    """A layer's rank, by PEFT's own rule: the first pattern that names it, or else `lora.rank`."""
    return config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), path), config.rank)


def refuse_idle_patterns(matched: dict[str, Shape], config: LoraConfig) -> None:
    """Raises `ValueError` for a pattern that names no adapted layer, or experts, whose rank `expert_rank` sets."""
    for key, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for name in pattern:
            named = [shape for path, shape in matched.items() if get_pattern_key([name], path) == name]
            if not named or any(shape.experts for shape in named):
                leaves = sorted({path.rpartition(".")[2] for path, shape in matched.items() if not shape.experts})
                near = difflib.get_close_matches(name, leaves, n=1, cutoff=0)
                raise ValueError(f"lora.{key}: {name!r} names no adapted linear layer; the nearest is {near[0]!r}")


def coverage_of(model: nn.Module, config: LoraConfig) -> Coverage:
    """What an adapter of this configuration adds: rank × (inputs + outputs) for each layer or expert."""
    matched = match_targets(model, config.targets)
    refuse_idle_patterns(matched, config)
    by_group: dict[str, int] = {}
    for path, shape in matched.items():
        size = shape.parameters(expert_rank(model, config) if shape.experts else rank_of(path, config))
        by_group[group_of(path)] = by_group.get(group_of(path), 0) + size
    return Coverage(
        modules=tuple(matched),
        trainable=sum(by_group.values()),
        total=sum(parameter.numel() for parameter in model.parameters()),
        by_group=by_group,
    )


def describe_adapter(config: LoraConfig, coverage: Coverage) -> str:
    """For people: what the adapter is, in numbers."""
    scale = f"alpha {config.alpha:g}" + (" over √rank" if config.rslora else "")
    start = f", continued from {config.start_from}" if config.start_from else ""
    if config.init != "default":
        start = f", init {config.init}" + (f" (served at rank {served_rank(config)})" * (served_factor(config) > 1))
    ratio = f", B at {config.plus_ratio:g} × the rate" if config.plus_ratio != 1 else ""
    return f"rank {config.rank}, {scale}{start}{ratio}, {coverage.describe()}"


def peft_config_for(model: nn.Module, config: LoraConfig) -> PeftLoraConfig:
    """PEFT's configuration of the adapter."""
    matched = match_targets(model, config.targets)
    linears = [path for path, shape in matched.items() if not shape.experts]
    experts = [path for path, shape in matched.items() if shape.experts]
    # Leaf names where they mean just these layers, so that adapter_config.json stays readable.
    leaves = sorted({path.rpartition(".")[2] for path in linears})
    exact = bool(leaves) and set(match_targets(model, tuple(leaves))) == set(linears)
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        # PEFT calls it an integer and divides by the rank: fractions work, whole numbers are written as such.
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,  # type: ignore[arg-type]
        target_modules=leaves if exact else linears,
        target_parameters=experts or None,
        rank_pattern={**config.rank_pattern, **dict.fromkeys(experts, expert_rank(model, config))},
        alpha_pattern=dict(config.alpha_pattern),
        init_lora_weights=STARTS[config.init].peft,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        lora_dropout=0.0,
        bias="none",
    )
    peft_config._register_custom_module({nn.Linear: LoraLinear})
    return peft_config


def add_adapter(model: nn.Module, config: LoraConfig, seed: int) -> tuple[PeftModel, Coverage]:
    """Freeze the model and add the adapter, in float32: with the default start A uniform in ±1/√d_in, B zero; scale
    α/r.

    What is drawn is drawn from `seed` and nothing else. The weights of the model stay as they are.
    """
    coverage = coverage_of(model, config)
    converted = STARTS[config.init].served == "converted"
    if config.init != "default" and any(shape.experts for shape in match_targets(model, config.targets).values()):
        raise ValueError(f"lora.init {config.init} is made for linear layers, and this model has experts: take default")
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the base model is {parameter.dtype} at {name}; bfloat16 and float32 are supported")
    with torch.random.fork_rng(), warnings.catch_warnings():
        # An adapter of the output embedding alone is what is wanted where it is tied to the input's.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        # PEFT looks among modules alone for what a rank is given to; the count below sees that experts got theirs.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        torch.manual_seed(seed)
        with unchanged(model, coverage.modules if converted else ()):
            adapted = get_peft_model(model, peft_config_for(model, config), autocast_adapter_dtype=True)
    assert isinstance(adapted, PeftModel)
    if converted:
        for layer in lora_layers(adapted).values():
            layer.remember_start()
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == coverage.trainable, (trainable, coverage.trainable)
    return adapted, coverage


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted linear layers by their paths in the PEFT model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The trained parameters under the names PEFT saves them by."""
    return {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def peft_config_of(model: PeftModel, config: LoraConfig, base_model: str) -> dict[str, Any]:
    """What goes into adapter_config.json: PEFT's own fields of the adapter as it is served, which loads as a plain
    LoRA whatever it started from."""
    facts = model.peft_config["default"].to_dict()
    facts["base_model_name_or_path"] = base_model
    facts["inference_mode"] = True
    ranks, alphas = served_factor(config), served_alpha_factor(config)
    if ranks > 1:
        facts |= {"init_lora_weights": True, "r": ranks * facts["r"], "lora_alpha": alphas * facts["lora_alpha"]}
        facts["rank_pattern"] = {name: ranks * rank for name, rank in facts["rank_pattern"].items()}
        facts["alpha_pattern"] = {name: alphas * alpha for name, alpha in facts["alpha_pattern"].items()}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in facts.items()}


def served(model: PeftModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What learns → what is served, by the same names."""
    for path, layer in lora_layers(model).items():
        a, b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        tensors = {**tensors, **dict(zip((a, b), layer.whole(tensors[a], tensors[b]), strict=True))}
    return tensors


def write_adapter(directory: Path, model: PeftModel, config: LoraConfig, base: str, tensors: dict[str, Tensor]) -> None:
    """An adapter in PEFT's format, from what learns. `base` is the name of the base model."""
    whole = {name: tensor.contiguous() for name, tensor in served(model, tensors).items()}
    save_file(whole, directory / PEFT_WEIGHTS, metadata={"format": "pt"})
    facts = peft_config_of(model, config, locate_model(base))
    (directory / PEFT_CONFIG).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def adapter_facts(config: LoraConfig) -> dict[str, Any]:
    """What the manifest says of every version of an adapter."""
    return {"kind": "lora", "rank": served_rank(config), "weights": PEFT_WEIGHTS}


def go_on_from(model: PeftModel, config: LoraConfig, base: str) -> None:
    """Begin with the adapter of `lora.start_from`, if there is one."""
    if config.start_from is not None:
        tensors = read_adapter(Path(config.start_from), base, peft_config_of(model, config, base))
        put(adapter_parameters(model), tensors, config.start_from)


def rate_groups(parameters: dict[str, nn.Parameter], config: LoraConfig) -> list[tuple[float, list[nn.Parameter]]]:
    """LoRA+ (Hayou et al. 2024): B learns at `lora.plus_ratio` times the rate of A. See `Trainee.rates`."""
    if config.plus_ratio == 1:
        return [(1.0, list(parameters.values()))]
    of_b = {name: parameter for name, parameter in parameters.items() if "lora_B" in name}
    of_a = [parameter for name, parameter in parameters.items() if name not in of_b]
    return [(1.0, of_a), (config.plus_ratio, list(of_b.values()))]


class LoraTrainee:
    """A frozen model with an adapter that learns; the base model is the same with the adapter switched off."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config = config
        self.model, self.coverage = add_adapter(load_causal_lm(config, device), config.lora, config.seed)
        self.causal_lm: Any = self.model.get_base_model()
        self.parameters = adapter_parameters(self.model)
        go_on_from(self.model, config.lora, config.model.name)

    def describe(self) -> str:
        return describe_adapter(self._config.lora, self.coverage)

    def rates(self) -> list[tuple[float, list[nn.Parameter]]]:
        return rate_groups(self.parameters, self._config.lora)

    def calibrate(self, passes: Iterator[Callable[[], Any]]) -> None:
        if STARTS[self._config.lora.init].calibrated:
            with self.model.disable_adapter():
                fit_to_activations(lora_layers(self.model), passes)

    @contextlib.contextmanager
    def as_base(self, score: Score) -> Iterator[Score]:
        with self.model.disable_adapter():
            yield score

    def prepare_for_zero3(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return [(layer, p) for layer in lora_layers(self.model).values() for p in layer.outer_parameters()]

    def write(self, directory: Path, tensors: dict[str, Tensor]) -> None:
        write_adapter(directory, self.model, self._config.lora, self._config.model.name, tensors)

    def facts(self) -> dict[str, Any]:
        return adapter_facts(self._config.lora)
