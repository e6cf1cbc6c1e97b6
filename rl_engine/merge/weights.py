"""Base model + adapter → a model that needs no adapter, and how much of the update was lost by rounding its weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from evals.protocol.training_protocol import RECORD, chat_template_of, run_config_of
from rl_engine.policy.base_model import DTYPES
from rl_engine.run.trained_adapter import TrainedAdapter
from rollout.adapters import MANIFEST, PEFT_WEIGHTS
from rollout.models import layer_sizes, load_model, read_model_config, read_tokenizer
from rollout.peft_format import PREFIX, more_than_lora, rank_and_scale, refuse_misfit

A, B, NESTED = ".lora_A.weight", ".lora_B.weight", ".base_layer"

# Families that vLLM always serves with tied input and output embeddings, whatever config.json says: an untied gemma2
# would not load, and cohere would use the base model's output head.
TIED_WHEN_SERVED = ("cohere", "cohere2", "gemma2", "gemma3n", "gemma3n_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """The difference between base + update in float32 and the weights as stored, over all layers with an update."""

    dtype: str
    update_mean: float
    """Mean |update| per weight."""
    update_max: float
    error_mean: float
    """Mean |stored − (base + update)| per weight."""
    error_max: float
    lost_frac: float
    """Fraction of the updated weights that are stored as if they had no update."""

    @property
    def error_share(self) -> float:
        """Mean error over mean update."""
        return self.error_mean / self.update_mean if self.update_mean else 0.0


def merge(adapter: TrainedAdapter, dtype: str, target: Path) -> Rounding:
    """Write the merged model, its tokenizer and a record of its run into the directory `target`.

    W + (alpha / rank) · B·A is computed in float32 from the base model as published, whatever precision the run used;
    only the sum is rounded. Takes 4 bytes of memory per parameter.
    Raises `ValueError` for an adapter that is more than that, a missing base model, a missing chat template, or an
    adapted output head in a family that is always served with tied embeddings.
    """
    turned = ["fan_in_fan_out=True"] if adapter.peft.get("fan_in_fan_out") else []
    if more := [*more_than_lora(adapter.peft), *turned]:
        raise ValueError(f"the adapter has {', '.join(more)}, and only plain LoRA is merged")
    template = chat_template_of(adapter.directory)
    source, revision = adapter.base.source(), adapter.base.revision
    what = f"the base model {adapter.base.name}"
    model_config = read_model_config(source, revision, what)
    refuse_misfit(adapter.directory, source, layer_sizes(model_config, what))
    model = load_model(model_config, source, what, revision=revision, dtype=torch.float32)
    tensors = load_file(adapter.directory / PEFT_WEIGHTS)
    sums = _Sums(DTYPES[dtype])
    for name in [name.removesuffix(A) for name in tensors if name.endswith(A)]:
        path = name.removeprefix(PREFIX)
        layer, parameter = _changed(model, path, adapter.peft.get("target_parameters") or ())
        _, scale = rank_and_scale(adapter.peft, path)
        _untie(model, layer)
        weight = getattr(layer, parameter)
        is_turned = getattr(layer, "is_transposed", False)
        update = _product(tensors[name + A], tensors[name + B], weight, turned=is_turned) * scale
        merged = weight.data + update
        sums.add(weight.data, update, merged)
        weight.data = merged
    # Saved by itself, since transformers refuses to save what some checkpoints hold, such as a temperature alone.
    generation, model.generation_config = model.generation_config, GenerationConfig()
    model.to(DTYPES[dtype]).save_pretrained(target)
    generation.to_json_file(target / GENERATION_CONFIG_NAME)
    tokenizer = read_tokenizer(source, revision)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(target)
    _keep_record(adapter, target)
    return sums.rounding(dtype)


def _changed(model: Any, path: str, targeted: Iterable[str]) -> tuple[Any, str]:
    """The module that a pair of factors belongs to, and the name of the parameter that they change. For several
    parameters of one module PEFT nests the factors, innermost those of the first parameter."""
    plain = path.replace(NESTED, "")
    module = model.get_submodule(plain)
    own = [name for name, _ in module.named_parameters(recurse=False)]
    named = [name for name in own if any(f".{plain}.{name}".endswith(f".{one}") for one in targeted)]
    return module, named[-1 - path.count(NESTED)] if named else "weight"


def _product(a_RI: Tensor, b_OR: Tensor, weight: Tensor, *, turned: bool) -> Tensor:
    """B·A; for stacked experts one product each, [experts, O, I], or [experts, I, O] if the model transposes them.

    PEFT stacks the factors of experts: A by expert and then rank, B by rank and then expert.
    """
    if weight.dim() == 2:
        return b_OR @ a_RI
    a_ERI, b_ORE = a_RI.unflatten(0, (len(weight), -1)), b_OR.unflatten(1, (-1, len(weight)))
    return torch.einsum("ore,eri->eio" if turned else "ore,eri->eoi", b_ORE, a_ERI)


def _keep_record(adapter: TrainedAdapter, target: Path) -> None:
    """Record which adapter was merged and the run's prompt settings, without which an evaluation would prompt
    differently."""
    config = run_config_of(adapter.directory)
    if config is None:
        return
    record = target / RECORD
    record.mkdir()
    for file in (adapter.directory / MANIFEST, config):
        shutil.copyfile(file, record / file.name)


def _untie(model: Any, layer: nn.Module) -> None:
    """Separate the output head from the input embedding, which an update of the head must not change. A multimodal
    wrapper and its language model each have a flag for tying, and loaders read either, so both are set."""
    if layer is model.get_output_embeddings() and _is_tied(model.config):
        refuse_tied_head(model.config)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        for one in _stated(model.config):
            one.tie_word_embeddings = False


def _stated(model_config: Any) -> list[Any]:
    return [model_config, model_config.get_text_config()]


def _is_tied(model_config: Any) -> bool:
    return any(getattr(one, "tie_word_embeddings", False) for one in _stated(model_config))


def refuse_tied_head(model_config: Any) -> None:
    """Raises `ValueError` if an adapter of this model's output head could not be merged."""
    if _is_tied(model_config) and (family := model_config.model_type) in TIED_WHEN_SERVED:
        raise ValueError(
            f"the adapter changes lm_head, which in {family} is tied to the input embedding, and vLLM cannot serve the "
            "two apart: use the adapter without merging it"
        )


class _Sums:
    """Running totals over layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._count = self._moved = self._lost = 0
        self._update = self._error = self._update_max = self._error_max = 0.0

    def add(self, base: Tensor, update: Tensor, merged: Tensor) -> None:
        stored = merged.to(self._dtype).float()
        error, moved = (stored - merged).abs(), update != 0
        self._count += update.numel()
        self._moved += int(moved.sum())
        self._lost += int((moved & (stored == base.to(self._dtype).float())).sum())
        self._update += float(update.abs().sum(dtype=torch.float64))
        self._error += float(error.sum(dtype=torch.float64))
        self._update_max = max(self._update_max, float(update.abs().max()))
        self._error_max = max(self._error_max, float(error.max()))

    def rounding(self, dtype: str) -> Rounding:
        return Rounding(
            dtype=dtype,
            update_mean=self._update / self._count,
            update_max=self._update_max,
            error_mean=self._error / self._count,
            error_max=self._error_max,
            lost_frac=self._lost / max(self._moved, 1),
        )
