"""Base model → a model with all weights trainable: full fine-tuning, the reference arm of every claim about LoRA.

The master weights are float32, so that updates far below bfloat16's resolution are not lost. The forward pass casts
them to `model.dtype`, and the cast weights are what is published and what the sampler serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import GENERATION_CONFIG_NAME

from rl_engine.config import Config
from rl_engine.config.sft import SftConfig
from rl_engine.policy.base_model import DTYPES, published_config
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.trainable import LogprobFunction
from rollout.models import locate_model, read_tokenizer

WEIGHTS = "model.safetensors"


class _Cast(nn.Module):
    """Casts a master weight for the forward pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make every module of a float32 model read its weights cast to `dtype`; gradients arrive in float32."""
    for module in list(model.modules()):
        for name in [name for name, p in module.named_parameters(recurse=False) if p.dtype != dtype]:
            register_parametrization(module, name, _Cast(dtype), unsafe=True)


def masters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The float32 parameters, by their names in a checkpoint."""
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): parameter
        for name, parameter in model.named_parameters()
    }


def write_model(directory: Path, model: Any, tensors: dict[str, Tensor], model_config: Any, tokenizer: Any) -> None:
    """Write an ordinary checkpoint, in the precision stated in the model's configuration. `tensors` are the values of
    `masters_of(model)`.

    The files hold the same names as the base model's: transformers stacks experts when it loads them, and vLLM and
    older versions of transformers read them one by one.
    """
    cast = {name: tensor.to(model_config.dtype) for name, tensor in tensors.items()}
    whole = revert_weight_conversion(model, {**cast, **_stored_buffers(model)})
    stored = {name: tensor.contiguous() for name, tensor in whole.items()}
    save_file(stored, directory / WEIGHTS, metadata={"format": "pt"})
    model_config.save_pretrained(directory)
    # It may name further end tokens. Written without transformers' checks, which refuse what some checkpoints hold.
    model.generation_config.to_json_file(directory / GENERATION_CONFIG_NAME)
    tokenizer.save_pretrained(directory)


def _stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Values that a checkpoint holds and nothing trains, such as the bias of a router's scores (DeepSeek)."""
    stored = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    return {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name in stored}


class FullPolicy:
    """All weights of the model and, if there is a KL penalty, a frozen copy of the base model."""

    def __init__(self, config: Config | SftConfig, causal_lm: Any, base: LogprobModel | None = None) -> None:
        """`causal_lm`: the model in float32. `base`: the frozen copy."""
        self._config = config
        self.model = self.causal_lm = causal_lm
        compute_in(causal_lm, DTYPES[config.model.precision])
        self.parameters = masters_of(causal_lm)
        self.has_base = base is not None
        self._base: Any = base

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return f"full fine-tuning, all {count:,} parameters, float32 masters"

    def param_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        return [(1.0, list(self.parameters.values()))]

    def begin(self, passes: Iterator[Callable[[], Any]]) -> None:
        pass

    @contextlib.contextmanager
    def as_base(self, policy: LogprobFunction) -> Iterator[LogprobFunction]:
        yield self._base

    def shard_base(self, shard: Callable[[nn.Module], Any]) -> None:
        if self.has_base:
            self._base = shard(self._base)

    def prepare_for_zero3(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return []

    def write(self, directory: Path, tensors: dict[str, Tensor], chat_template: str | None = None) -> None:
        """Write an ordinary checkpoint, in `model.dtype`, with its tokenizer."""
        source = locate_model(self._config.model.name)
        tokenizer = read_tokenizer(source, self._config.model.revision)
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        write_model(directory, self.causal_lm, tensors, published_config(self._config.model), tokenizer)

    def manifest_entries(self) -> dict[str, Any]:
        return {"kind": "full", "rank": 0, "weights": WEIGHTS}
