"""Model → model with a trainable LoRA adapter, and the files it is published as."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from rl_engine.config import Config, LoraConfig
from rl_engine.config.sft import SftConfig
from rl_engine.config.starts import STARTS
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.lora.linear import LoraLinear
from rl_engine.policy.lora.start import copy_adapter, fit_to_activations, read_adapter, tie_to_numbers, unchanged
from rl_engine.policy.lora.targets import (
    Coverage,
    alpha_of,
    coverage_of,
    expert_rank,
    is_by_weight,
    match_targets,
    rank_of,
)
from rl_engine.policy.trainable import LogprobFunction
from rollout.adapters import CHAT_TEMPLATE, PEFT_CONFIG, PEFT_WEIGHTS
from rollout.config import ModelConfig
from rollout.models import locate_model

NUMBERS = "numbers"
"""Name, in checkpoints, of the trained numbers that all layers share."""


def describe_adapter(config: LoraConfig, coverage: Coverage) -> str:
    """The adapter in numbers, for the console."""
    scale = f"alpha {config.alpha:g}" + (" over √rank" if config.rslora else "")
    start = f", continued from {config.start_from}" if config.start_from else ""
    if config.is_tiny:
        start = f", init {config.init} of {config.numbers} numbers"
    elif config.init != "default":
        start = f", init {config.init}"
        if config.served_factor > 1:
            start += f" (served at rank {config.served_rank})"
    ratio = f", B at {config.plus_ratio:g} × the rate" if config.plus_ratio != 1 else ""
    return f"rank {config.rank}, {scale}{start}{ratio}, {coverage.describe()}"


def peft_config_for(model: nn.Module, config: LoraConfig) -> PeftLoraConfig:
    """PEFT's configuration of the adapter."""
    matched = match_targets(model, config.targets)
    experts = [path for path, layer in matched.items() if layer.experts]
    by_weight = [path for path, layer in matched.items() if not layer.experts and is_by_weight(model, path)]
    linears = [path for path in matched if path not in {*experts, *by_weight}]
    # Use leaf names if they match exactly these layers, so that adapter_config.json stays readable.
    leaves = sorted({path.rpartition(".")[2] for path in linears})
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in leaves}
    exact = bool(leaves) and named == set(linears)
    weights = {f"{path}.weight": path for path in by_weight}
    ranks = {name: rank_of(path, config) for name, path in weights.items()} if config.rank_pattern else {}
    alphas = {name: alpha_of(path, config) for name, path in weights.items()} if config.alpha_pattern else {}
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        # PEFT types it as an integer but only divides it by the rank, so fractions work. Whole numbers stay integers.
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,  # type: ignore[arg-type]
        target_modules=leaves if exact else linears,
        target_parameters=[*experts, *weights] or None,
        rank_pattern={**config.rank_pattern, **ranks, **dict.fromkeys(experts, expert_rank(model, config))},
        alpha_pattern={**config.alpha_pattern, **alphas},
        init_lora_weights=STARTS[config.init].peft,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        lora_dropout=0.0,
        bias="none",
    )
    peft_config._register_custom_module({nn.Linear: LoraLinear})
    return peft_config


def add_adapter(model: nn.Module, config: LoraConfig, seed: int) -> tuple[PeftModel, Coverage]:
    """Freeze the model and add the adapter, in float32, with scale α/r. With the default start, A is uniform in
    ±1/√d_in and B is zero.

    Random values depend only on `seed`. The model's weights are unchanged.
    """
    coverage = coverage_of(model, config)
    converted = STARTS[config.init].served == "converted"
    refuse_experts(model, config)
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the base model is {parameter.dtype} at {name}; bfloat16 and float32 are supported")
    with torch.random.fork_rng(), warnings.catch_warnings():
        # With tied embeddings, adapting only the output embedding is intended.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        # PEFT searches only modules for the keys of these patterns; the count below checks that weights got theirs.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        torch.manual_seed(seed)
        with unchanged(model, coverage.modules if converted else ()):
            adapted = get_peft_model(model, peft_config_for(model, config), autocast_adapter_dtype=True)
    assert isinstance(adapted, PeftModel)
    if converted:
        for layer in lora_layers(adapted).values():
            layer.remember_start()
    if config.is_tiny:
        tie_to_numbers(lora_layers(adapted), config.numbers, seed)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == coverage.trainable, (trainable, coverage.trainable)
    return adapted, coverage


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted linear layers by their paths in the PEFT model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The trained parameters by the names PEFT saves them under; numbers that all layers share are under `NUMBERS`."""
    return {
        NUMBERS if name.endswith(f".{NUMBERS}") else name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def peft_config_of(model: PeftModel, config: LoraConfig, base_model: str) -> dict[str, Any]:
    """The content of adapter_config.json: PEFT's own fields for the served adapter, which loads as a plain LoRA
    whatever its start."""
    fields = model.peft_config["default"].to_dict()
    fields["base_model_name_or_path"] = base_model
    fields["inference_mode"] = True
    ranks = config.served_factor
    if ranks > 1:
        # The published adapter keeps the scale of the trained one: α/r, or α/√r.
        alphas = math.sqrt(ranks) if config.rslora else ranks
        fields |= {"init_lora_weights": True, "r": ranks * fields["r"], "lora_alpha": alphas * fields["lora_alpha"]}
        fields["rank_pattern"] = {name: ranks * rank for name, rank in fields["rank_pattern"].items()}
        fields["alpha_pattern"] = {name: alphas * alpha for name, alpha in fields["alpha_pattern"].items()}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def served_tensors(model: PeftModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The served adapter's tensors, computed from the trained ones, by the same names."""
    served = {name: tensor for name, tensor in tensors.items() if name != NUMBERS}
    for path, layer in lora_layers(model).items():
        factors = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        learned = (NUMBERS,) if layer.is_tied else factors
        served |= zip(factors, layer.served(*(tensors[name] for name in learned)), strict=True)
    return served


def write_adapter(directory: Path, model: PeftModel, config: LoraConfig, base: str, tensors: dict[str, Tensor]) -> None:
    """Write an adapter in PEFT's format, from the trained tensors. `base` is the name of the base model."""
    contiguous = {name: tensor.contiguous() for name, tensor in served_tensors(model, tensors).items()}
    save_file(contiguous, directory / PEFT_WEIGHTS, metadata={"format": "pt"})
    peft_config = peft_config_of(model, config, locate_model(base))
    (directory / PEFT_CONFIG).write_text(json.dumps(peft_config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_adapter(model: ModelConfig, config: LoraConfig, seed: int, *, begins: bool = True) -> None:
    """Raise what `add_adapter` would raise, and `go_on_from` if the run `begins`, from the model's shapes alone."""
    shapes = load_meta_model(model)
    coverage_of(shapes, config)
    refuse_experts(shapes, config)
    if begins and config.start_from is not None:
        adapted, _ = add_adapter(shapes, config, seed)
        go_on_from(adapted, config, model.name)


def refuse_experts(model: nn.Module, config: LoraConfig) -> None:
    """Raise `ValueError` for a start that only works on linear layers, in a model with experts."""
    if config.init != "default" and any(
        layer.experts or is_by_weight(model, path) for path, layer in match_targets(model, config.targets).items()
    ):
        raise ValueError(f"lora.init {config.init} is made for linear layers, and this model has experts: use default")


def go_on_from(model: PeftModel, config: LoraConfig, base: str) -> None:
    """Copy in the adapter of `lora.start_from`, if there is one."""
    if config.start_from is not None:
        tensors = read_adapter(Path(config.start_from), base, peft_config_of(model, config, base))
        copy_adapter(adapter_parameters(model), tensors, config.start_from)


class LoraPolicy:
    """A frozen model with a trainable adapter. The base model is the same model with the adapter switched off."""

    has_base = True

    def __init__(self, config: Config | SftConfig, causal_lm: Any) -> None:
        self._config = config
        self.causal_lm = causal_lm
        self.model, self.coverage = add_adapter(causal_lm, config.lora, config.seed)
        self.parameters = adapter_parameters(self.model)

    def describe(self) -> str:
        return describe_adapter(self._config.lora, self.coverage)

    def param_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """LoRA+ (Hayou et al. 2024): B has `lora.plus_ratio` times the learning rate of A."""
        ratio = self._config.lora.plus_ratio
        if ratio == 1:
            return [(1.0, list(self.parameters.values()))]
        of_b = {name: parameter for name, parameter in self.parameters.items() if "lora_B" in name}
        of_a = [parameter for name, parameter in self.parameters.items() if name not in of_b]
        return [(1.0, of_a), (ratio, list(of_b.values()))]

    def begin(self, passes: Iterator[Callable[[], Any]]) -> None:
        go_on_from(self.model, self._config.lora, self._config.model.name)
        if STARTS[self._config.lora.init].calibrated:
            with self.model.disable_adapter():
                fit_to_activations(lora_layers(self.model), passes)

    @contextlib.contextmanager
    def as_base(self, policy: LogprobFunction) -> Iterator[LogprobFunction]:
        with self.model.disable_adapter():
            yield policy

    def shard_base(self, shard: Callable[[nn.Module], Any]) -> None:
        pass

    def prepare_for_zero3(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return [(layer, p) for layer in lora_layers(self.model).values() for p in layer.outer_parameters()]

    def write(self, directory: Path, tensors: dict[str, Tensor], chat_template: str | None = None) -> None:
        write_adapter(directory, self.model, self._config.lora, self._config.model.name, tensors)
        if chat_template is not None:  # the adapter must be served with it
            (directory / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")

    def manifest_entries(self) -> dict[str, Any]:
        return {"kind": "lora", "rank": self._config.lora.served_rank, "weights": PEFT_WEIGHTS}
