"""Method → the model to train, its trainable parameters, and how a version of it is written.

Both methods compute in `model.dtype` and keep trainable parameters in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_engine.config.sft import SftConfig
from rl_engine.policy import full
from rl_engine.policy.base_model import load_weights, published_config
from rl_engine.policy.lora import adapter as lora
from rl_engine.policy.lora.linear import LoraLinear
from rollout.adapters import CHAT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableModel:
    """A model in supervised training, and its trainable parameters."""

    model: Any
    """The module to call: transformers' model, or PEFT's wrapper around it."""
    causal_lm: Any
    """transformers' model itself."""
    parameters: dict[str, nn.Parameter]
    """The trainable parameters, in float32, by the names under which they are published."""
    begin: Callable[[], None]
    """Loads the initial values from another adapter if the run continues one. Not to be called on resume."""
    param_groups: list[tuple[float, list[nn.Parameter]]]
    """(factor, parameters) pairs: each group learns at `factor` times `optim.lr`."""
    write: Callable[[Path, dict[str, Tensor]], None]
    """Writes values, keyed like `parameters`, into a directory in the format of a published version."""
    manifest_fields: dict[str, Any]
    """Manifest entries common to all versions."""
    description: str

    @property
    def head_is_adapted(self) -> bool:
        return isinstance(self.causal_lm.get_output_embeddings(), LoraLinear)

    def values(self) -> dict[str, Tensor]:
        """Copies of the current values, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}


def with_adapter(config: SftConfig, tokenizer: Any, device: torch.device) -> TrainableModel:
    """The frozen base with the same initial adapter as in reinforcement learning."""
    causal_lm = load_weights(config.model, config.train.attention).to(device)
    model, coverage = lora.add_adapter(causal_lm, config.lora, config.seed)
    parameters = lora.adapter_parameters(model)

    def write(directory: Path, tensors: dict[str, Tensor]) -> None:
        lora.write_adapter(directory, model, config.lora, config.model.name, tensors)
        if config.data.chat_template is not None:  # the adapter must be served with this template
            (directory / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")

    return TrainableModel(
        model=model,
        causal_lm=causal_lm,
        parameters=parameters,
        begin=lambda: lora.go_on_from(model, config.lora, config.model.name),
        param_groups=lora.param_groups(parameters, config.lora),
        write=write,
        manifest_fields=lora.manifest_entries(config.lora),
        description=lora.describe_adapter(config.lora, coverage),
    )


def with_all_weights(config: SftConfig, tokenizer: Any, device: torch.device) -> TrainableModel:
    """Full fine-tuning: float32 master weights, with the forward pass in `model.dtype`."""
    model = load_weights(config.model, config.train.attention, torch.float32).to(device)
    saved_config = published_config(config.model)
    full.compute_in(model, saved_config.dtype)
    parameters = full.masters_of(model)
    return TrainableModel(
        model=model,
        causal_lm=model,
        parameters=parameters,
        begin=lambda: None,
        param_groups=[(1.0, list(parameters.values()))],
        write=lambda directory, tensors: full.write_model(directory, model, tensors, saved_config, tokenizer),
        manifest_fields=full.MANIFEST_ENTRIES,
        description=full.describe(parameters),
    )


METHODS: dict[str, Callable[[SftConfig, Any, torch.device], TrainableModel]] = {
    "lora": with_adapter,
    "full": with_all_weights,
}
