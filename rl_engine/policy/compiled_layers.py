"""Decoder layers → layers compiled by torch, if that is worth the time and computes the same gradients."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_engine.config import Config
from rl_engine.policy.attention import VARLEN
from rl_engine.policy.base_model import attention_of
from rl_engine.policy.logits import compiler_message

WORTH_COMPILING = 100_000_000
"""Fewest parameters for which passes are long enough: compiling takes 15 s at 1.5B in a process without vLLM (H200)."""
FORMS = 64
MOVED = 0.01
ADAPTERS = 3
"""Number of random adapters on which gradients are compared. Where the terms of a gradient nearly cancel, bfloat16
leaves mostly rounding: at rank 1, up to three quarters of a tensor. Other adapter values make that happen in other
tensors, so each tensor's smallest error of the three counts; it was up to 7 % (28 and 64 layers, against float32, on a
CPU)."""
SAME_GRADIENT = 0.25
"""Relative difference up to which gradients count as the same. What a compiler loses is missing as a whole, whatever
the values are."""


class NotCompiledWarning(UserWarning):
    """The layers are not compiled, and the learner's passes take longer."""


def is_worth_compiling(config: Config, model: nn.Module, device: torch.device) -> bool:
    """Whether compiling pays for the time it takes at the start of a run: on a GPU, for a model that is large enough
    and whose layers all have the same form, whatever the lengths of the samples in a micro-batch."""
    if device.type != "cuda" or attention_of(config, device) != VARLEN:
        return False
    # Each layer would be compiled separately: its weights are cast by classes of its own, or its adapter is different.
    differ = config.method == "full" or config.lora.rank_pattern or config.lora.alpha_pattern
    # Operations cannot be fused where ZeRO-3 gathers weights between them, or where the tokens choose the experts.
    parameters = dict(model.named_parameters())
    broken = config.learner.zero_stage == 3 or any("experts" in name for name in parameters)
    return not differ and not broken and sum(one.numel() for one in parameters.values()) >= WORTH_COMPILING


def compile_layers(model: nn.Module, tried: Callable[[], Tensor]) -> bool:
    """Compile the decoder layers for passes with gradients, which fuses a layer's small operations into a few kernels.

    `tried` runs the model and returns something differentiable. If the compiler or its output does not work here, or
    gives other gradients than the plain layers, this warns and leaves the layers as they are.
    Returns whether the layers are compiled.
    """
    import torch._dynamo  # imported only when used, as it loads the compiler

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    compiled = [_compiled_where_it_learns(layer.forward) for layer in layers]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Past this limit torch stops compiling with barely a notice. Runs with other LoRA ranks in this process count too.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    errors = []
    try:
        for number in range(ADAPTERS):
            with _moved(learned, number):
                expected = _gradients(tried, learned)
                with _forwards(layers, compiled):
                    errors.append(shares_of_error(_gradients(tried, learned), expected))
    except torch.OutOfMemoryError:
        raise  # the plain layers need no less memory
    except (RuntimeError, AssertionError) as raised:  # from the compiler, or from kernels that it made
        message = f"torch.compile does not work here: {compiler_message(raised)}"
    else:
        error = float(torch.stack(errors).amin(dim=0).max())
        if error <= SAME_GRADIENT:
            for layer, forward in zip(layers, compiled, strict=True):
                layer.forward = forward
            return True
        message = f"torch.compile gives wrong gradients here (off by up to {error:.0%})"
    warnings.warn(f"{message}; the learner runs uncompiled, and slower", NotCompiledWarning, stacklevel=2)
    return False


@contextlib.contextmanager
def _forwards(layers: Sequence[Any], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside the block, the layers use these forward functions."""
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _gradients(tried: Callable[[], Tensor], learned: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(tried().sum(), learned, allow_unused=True, materialize_grads=True)


@contextlib.contextmanager
def _moved(parameters: Sequence[nn.Parameter], number: int) -> Iterator[None]:
    """Inside the block, perturb the parameters by random values seeded with `number`: in a freshly started adapter,
    half of the parameters have no gradient to compare."""
    kept = [parameter.detach().clone() for parameter in parameters]
    draw = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(MOVED * torch.randn(parameter.shape, generator=draw).to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def shares_of_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Relative error of each tensor, in norms. The denominator is at least a thousandth of the largest expected norm,
    since tensors smaller than that may consist of rounding errors only."""
    norms = torch.stack([tensor.norm() for tensor in expected])
    differences = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)])
    return differences / norms.clamp_min(norms.max() / 1000)


def _compiled_where_it_learns(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a forward function for passes with gradients only. Passes without are few, and would have to be compiled
    separately, with the adapter and without."""
    compiled = torch.compile(forward, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return call
