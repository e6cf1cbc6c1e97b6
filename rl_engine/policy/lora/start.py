"""Base model, prompts or another adapter → the initial values of an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rl_engine.config.file import ConfigError
from rollout.adapters import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, AdapterError, read_manifest
from rollout.models import model_title
from rollout.peft_format import FACTOR, PREFIX, rank_and_scale, read_peft

# Number of activations that EVA uses: several times the largest useful rank, and small compared with the model.
EVA_TOKENS = 1024


@contextlib.contextmanager
def unchanged(model: nn.Module, paths: tuple[str, ...]) -> Iterator[None]:
    """Restore the weights of these layers after the block, in the same memory. Inside the block the layers use copies.

    PEFT's SVD starts subtract the initial update from the base weights, some of them in place. Here the base must not
    change: the sampler serves it, the KL is measured against it, and other runs may share it. The initial update is
    subtracted in the adapter instead.
    """
    layers: list[Any] = [model.get_submodule(path) for path in paths]
    before = [layer.weight.data for layer in layers]
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.data = weight.clone()
    yield
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.data = weight


@torch.no_grad()
def fit_to_activations(layers: Mapping[str, Any], passes: Iterator[Callable[[], Any]]) -> None:
    """EVA (Paischer et al. 2024): the rows of A are the leading right singular vectors of a layer's inputs; B is zero.

    Args:
        layers: LoRA layers by path.
        passes: forward passes over the prompts; they run until every layer has seen `EVA_TOKENS` tokens.
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
        x_NI = torch.cat(seen[path])[:EVA_TOKENS].double()
        if len(a_RI) > min(x_NI.shape):
            raise ConfigError(
                f"lora.rank is {len(a_RI)}, and lora.init eva finds only {min(x_NI.shape)} directions at {path}, in "
                f"{len(x_NI)} tokens: lower lora.rank, or use lora.init=default"
            )
        a_RI.copy_(leading_directions(x_NI, len(a_RI)))


def leading_directions(x_NI: Tensor, rank: int) -> Tensor:
    """[rank, I] right singular vectors of the largest singular values, computed from the eigenvectors of the smaller of
    XᵀX and XXᵀ: several times as fast as a singular value decomposition."""
    if x_NI.shape[0] >= x_NI.shape[1]:
        leading_IR: Tensor = torch.linalg.eigh(x_NI.T @ x_NI).eigenvectors[:, -rank:].flip(1)
        return leading_IR.T
    leading_NR: Tensor = torch.linalg.eigh(x_NI @ x_NI.T).eigenvectors[:, -rank:].flip(1)
    return torch.nn.functional.normalize(leading_NR.T @ x_NI)


@torch.no_grad()
def tie_to_numbers(layers: Mapping[str, Any], count: int, seed: int) -> None:
    """TinyLoRA (Morris et al. 2026, arXiv 2602.04118): W + s · U Σ (Σᵢ vᵢ Pᵢ) Vᵀ, where only v is trained.

    U Σ Vᵀ is the weight's best approximation at the layer's rank R. The Pᵢ are fixed random [R, R] matrices, drawn for
    each layer from a normal distribution with variance 1/R. v has `count` numbers that all layers share and that start
    at zero. s is α/r, the scale of every adapter here; the paper has none. PEFT's module has √Σ on both sides of the
    sum instead of Σ before it: the same span and, at rank 1, the same update.

    Args:
        layers: LoRA layers by path, over unsharded base weights.
        count: number of trained numbers.
        seed: seed of the Pᵢ, which are drawn layer by layer.
    """
    devices = {layer.get_base_layer().weight.device for layer in layers.values()}
    numbers_M = nn.Parameter(torch.zeros(count, device=devices.pop()))
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        weight_OI: Tensor = layer.get_base_layer().weight.double()
        rank = len(layer.lora_A["default"].weight)
        v_RI = leading_directions(weight_OI, rank)
        # A singular vector's sign is arbitrary and differs between libraries, but matters once multiplied by P. Fix it,
        # so that a run resumed on another machine finds the same directions.
        v_RI *= v_RI.gather(1, v_RI.abs().argmax(1, keepdim=True)).sign()
        projections_MRR = torch.randn(count, rank, rank, generator=generator) / rank**0.5
        # U Σ = W V.
        fixed = (v_RI.float(), (weight_OI @ v_RI.T).float(), projections_MRR.to(numbers_M.device))
        layer.tie(numbers_M, *fixed)


def read_adapter(directory: Path, base_model: str, own_config: dict[str, Any]) -> dict[str, Tensor]:
    """The float32 tensors of an adapter to start from, by the names PEFT saves them under.

    Args:
        directory: where the adapter is.
        base_model: name of this run's base model.
        own_config: adapter_config.json of this run's adapter.

    Raises `AdapterError` if the files do not match their manifest, or if the adapter is not a plain LoRA, was trained
    on another base model, or has another scale (alpha / rank) in some module.
    """
    manifest = read_manifest(directory) if (directory / MANIFEST).is_file() else {}
    peft_config = read_peft(directory, "lora.start_from")
    trained_on = str(manifest.get("base_model") or peft_config.get("base_model_name_or_path") or "")
    if not trained_on:
        raise AdapterError(
            f"lora.start_from: {directory} does not name its base model: set base_model_name_or_path in "
            f"{directory / PEFT_CONFIG}"
        )
    if model_title(trained_on) != model_title(base_model):
        raise AdapterError(
            f"lora.start_from: {directory} is an adapter of {trained_on!r}, and model.name is {base_model!r}: give "
            f"model.name={trained_on}"
            # A trainer may have recorded a place of its own, or a quantized copy. What is published here is not edited.
            + ("" if manifest else f", or set base_model_name_or_path in its {PEFT_CONFIG} if the two are one model")
        )
    # Some trainers leave PEFT's prefix out, and vLLM reads the names as they are.
    stored = load_file(directory / PEFT_WEIGHTS).items()
    tensors = {PREFIX + name.removeprefix(PREFIX): tensor.float() for name, tensor in stored}
    for match in filter(None, map(FACTOR.match, tensors)):
        module = match["module"]
        rank, found = rank_and_scale(peft_config, module)
        _, scale = rank_and_scale(own_config, module)
        if abs(found - scale) > 1e-6 * scale:
            raise AdapterError(
                f"lora.start_from: the update of {module} in {directory} is scaled by {found:g} (rank {rank}), and "
                f"here by {scale:g}: set lora.rank, lora.alpha, lora.rslora and their patterns to its own"
            )
    return tensors


def copy_adapter(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy an adapter's tensors into the parameters of the same names.

    Raises `AdapterError` naming what does not fit.
    """
    missing, left = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or left:
        raise AdapterError(
            f"lora.start_from: {source} does not adapt the layers of lora.targets: "
            f"it lacks {len(missing)}{f' (such as {missing[0]})' if missing else ''} and has {len(left)} "
            f"more{f' (such as {left[0]})' if left else ''}; set lora.targets to the adapter's"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise AdapterError(
                f"lora.start_from: {name} is {tuple(tensors[name].shape)} in {source} and {tuple(parameter.shape)} "
                "here: set lora.rank and model.name to the adapter's"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
