"""Decoder layers → those that torch has compiled, where that is worth its time and computes the same."""

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
from rl_engine.policy.logits import compiler_said

WORTH_COMPILING = 100_000_000
"""Parameters of a model whose passes are long enough: compiling takes 15 s at 1.5B in a process without vLLM (H200)."""
FORMS = 64
MOVED = 0.01
ADAPTERS = 3
"""What is tried. A gradient of one number in which nearly all cancels is rounding in bfloat16: by itself that was up to
three quarters of a tensor at rank 1. With other values it is another tensor's, and the least of three were 7 % (28 and
64 layers, against float32, on a CPU)."""
SAME_GRADIENT = 0.25
"""Share by which gradients may differ and still be the same: what a compiler loses is missing as a whole, whatever the
values are."""


class NotCompiledWarning(UserWarning):
    """The layers stay as they are, and the learner's passes take longer."""


def is_worth_compiling(config: Config, model: nn.Module, device: torch.device) -> bool:
    """Whether torch's compiler makes up for the time that it takes at a run's start: on a card, for a model of some
    size whose layers are of one form, whatever the lengths of the samples in a micro-batch."""
    if device.type != "cuda" or attention_of(config, device) != VARLEN:
        return False
    # Each layer would be compiled anew: classes of its own cast its weights, or its adapter is not the next one's.
    differ = config.method == "full" or config.lora.rank_pattern or config.lora.alpha_pattern
    # Weights are gathered between the operations that would become one; experts are asked as the tokens say.
    parameters = dict(model.named_parameters())
    broken = config.learner.zero_stage == 3 or any("experts" in name for name in parameters)
    return not differ and not broken and sum(one.numel() for one in parameters.values()) >= WORTH_COMPILING


def compile_layers(model: nn.Module, tried: Callable[[], Tensor]) -> bool:
    """Let torch compile the decoder layers for the passes that learn: a layer's small operations become few kernels.

    `tried` computes something that has a gradient, with the model. Where the compiler or what it has made does not work
    here, or computes another gradient than the layers themselves, that is said and the layers stay as they are.
    Whether they are compiled is returned.
    """
    import torch._dynamo  # loads the compiler, so where it is used alone

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    compiled = [_compiled_where_it_learns(layer.forward) for layer in layers]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Beyond its limit torch leaves a layer as it is, and hardly says so. Runs of other ranks in this process count too.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    errors = []
    try:
        for number in range(ADAPTERS):
            with _moved(learned, number):
                expected = _gradients(tried, learned)
                with _forwards(layers, compiled):
                    errors.append(shares_of_error(_gradients(tried, learned), expected))
    except torch.OutOfMemoryError:
        raise  # of which the layers themselves take no less
    except (RuntimeError, AssertionError) as raised:  # of the compiler, or of kernels that it made
        said = f"torch.compile does not work here: {compiler_said(raised)}"
    else:
        error = float(torch.stack(errors).amin(dim=0).max())
        if error <= SAME_GRADIENT:
            for layer, forward in zip(layers, compiled, strict=True):
                layer.forward = forward
            return True
        said = f"torch.compile computes other gradients here, by {error:.0%} where they differ most"
    warnings.warn(f"{said}; so the learner's passes take longer", NotCompiledWarning, stacklevel=2)
    return False


@contextlib.contextmanager
def _forwards(layers: Sequence[Any], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside the block the layers compute by these."""
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
    """Other values inside the block, for each number: of an adapter as it begins, half has no gradient to be
    compared."""
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
    """The share by which each tensor differs from that expected, by norms. What is a thousandth of the largest tensor
    expected, or less, is compared with that: of it rounding may be the whole."""
    norms = torch.stack([tensor.norm() for tensor in expected])
    differences = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)])
    return differences / norms.clamp_min(norms.max() / 1000)


def _compiled_where_it_learns(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Passes without a gradient are few, and would each be compiled anew: with the adapter, and without."""
    compiled = torch.compile(forward, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return call
