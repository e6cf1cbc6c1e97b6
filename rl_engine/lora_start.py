"""Base model, prompts or another adapter → where an adapter starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rl_engine.config_file import ConfigError
from rollout.adapters import MANIFEST, AdapterError, read_manifest

WEIGHTS = "adapter_model.safetensors"
FACTS = "adapter_config.json"
# Activations that EVA looks at: some times the largest useful rank, and small beside the model.
EVA_TOKENS = 1024


@contextlib.contextmanager
def unchanged(model: nn.Module, paths: tuple[str, ...]) -> Iterator[None]:
    """Layers whose weights are the same after the block as before it.

    PEFT's SVD starts take the initial update off the base weights. Here the base stays what it is, for the sampler
    serves it and the KL is taken to it, and the initial update is taken off in the adapter.
    """
    layers: list[Any] = [model.get_submodule(path) for path in paths]
    before = [layer.weight.detach().clone() for layer in layers]
    yield
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.data = weight


@torch.no_grad()
def fit_to_activations(layers: Mapping[str, Any], passes: Iterator[Callable[[], Any]]) -> None:
    """EVA (Paischer et al. 2024): the rows of A are the leading right singular vectors of a layer's inputs; B is zero.

    Args:
        layers: LoRA layers by path.
        passes: forward passes over the prompts, made until every layer has seen `EVA_TOKENS` tokens.
    """
    seen: dict[str, list[Tensor]] = {path: [] for path in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: seen[path].append(inputs[0].flatten(0, -2)))
        for path, layer in layers.items()
    ]
    try:
        for forward in passes:
            forward()
            if sum(len(x) for x in next(iter(seen.values()))) >= EVA_TOKENS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    for path, layer in layers.items():
        a_RI: Tensor = layer.lora_A["default"].weight
        x_NI = torch.cat(seen[path])[:EVA_TOKENS].float()
        if len(a_RI) > min(x_NI.shape):
            raise ConfigError(
                f"lora.init eva finds {min(x_NI.shape)} directions in {len(x_NI)} tokens at {path}, and lora.rank is "
                f"{len(a_RI)}: lower it, or take lora.init=default"
            )
        a_RI.copy_(torch.linalg.svd(x_NI, full_matrices=False)[2][: len(a_RI)])


def read_adapter(directory: Path, base_model: str, scale: float) -> dict[str, Tensor]:
    """The float32 tensors of an adapter to go on from, by the names PEFT saves them under.

    Raises `AdapterError` when its files are not what its manifest states, when it was trained on another base model,
    or when its scale (alpha / rank) is another.
    """
    if not (directory / FACTS).is_file():
        raise AdapterError(f"lora.start_from: {directory} holds no {FACTS}")
    if (directory / MANIFEST).is_file():
        read_manifest(directory)
    facts = json.loads((directory / FACTS).read_text())
    trained_on = str(facts.get("base_model_name_or_path") or "")
    if Path(trained_on).name.lower() != Path(base_model).name.lower():
        raise AdapterError(
            f"lora.start_from: {directory} is an adapter of {trained_on!r}, and model.name is {base_model!r}"
        )
    found = facts["lora_alpha"] / (facts["r"] ** 0.5 if facts.get("use_rslora") else facts["r"])
    if abs(found - scale) > 1e-6 * scale:
        raise AdapterError(
            f"lora.start_from: the update of {directory} is scaled by {found:g} (alpha {facts['lora_alpha']:g}, rank "
            f"{facts['r']}), and this configuration's by {scale:g}: set lora.rank and lora.alpha to its own"
        )
    return {name: tensor.float() for name, tensor in load_file(directory / WEIGHTS).items()}


def put(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy an adapter's tensors into the parameters of the same names.

    Raises `AdapterError` naming what does not fit.
    """
    missing, left = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or left:
        raise AdapterError(
            f"lora.start_from: {source} touches other layers than lora.targets: "
            f"it lacks {len(missing)} of them{f', {missing[0]} for one' if missing else ''}, and has {len(left)} "
            f"more{f', {left[0]} for one' if left else ''}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise AdapterError(
                f"lora.start_from: {name} is {tuple(tensors[name].shape)} in {source} and {tuple(parameter.shape)} "
                "here: another lora.rank, or another model"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
