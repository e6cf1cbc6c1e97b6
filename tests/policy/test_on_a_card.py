"""What the learner computes differently on a GPU, computed here in both ways on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl_engine.policy.base_model import fuse_norms
from rl_engine.policy.lora.linear import CARD_STEP, _CardLoraLinear, _LoraLinear, padded
from tests.helpers.families import tiny_model
from tests.helpers.precision import assert_same_sums

PLAIN = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
OTHERS = ("gemma", "gemma2", "gpt2", "starcoder2")
"""Families whose norms add one to their weight, or subtract the mean."""


def outputs(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the input embedding."""
    logits = model(input_ids=torch.tensor([[3, 7, 1, 9, 20, 4]])).logits
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    draw = torch.Generator().manual_seed(0)
    (gradient,) = torch.autograd.grad((logits * torch.randn(logits.shape, generator=draw)).sum(), embedding)
    return logits, gradient


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_fused_norms_change_nothing_but_rounding(family: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(family).float().eval()
    with torch.no_grad():  # weights of one would hide how they are used
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    expected = outputs(model)
    fuse_norms(model)
    fused = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert bool(fused) == (family in PLAIN), fused
    for found, other in zip(outputs(model), expected, strict=True):
        assert_same_sums(found, other, 64 * 8)


def test_all_norms_of_a_model_are_fused() -> None:
    model = tiny_model("qwen3")
    fuse_norms(model)
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    assert len(norms) == 2 * 4 + 1  # per layer: before attention and MLP, of queries and keys; and the final one
    assert all("forward" in vars(norm) for norm in norms)


@pytest.mark.parametrize("learns_a", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 8, 20])
def test_the_layer_for_gpus_computes_the_same(rank: int, learns_a: bool) -> None:
    draw = torch.Generator().manual_seed(rank)
    x, weight, bias, a, b, upstream = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((10, 6), (5, 6), (5,), (rank, 6), (5, rank), (10, 5))
    )
    learned = [one.requires_grad_() for one in ((x, a, b) if learns_a else (x, b))]

    def of(layer: type[torch.autograd.Function]) -> tuple[Tensor, ...]:
        y: Tensor = layer.apply(x, weight, bias, a, b, 0.7)
        return y, *torch.autograd.grad((y * upstream).sum(), learned)

    for found, expected in zip(of(_CardLoraLinear), of(_LoraLinear), strict=True):
        assert found.shape == expected.shape
        assert_same_sums(found, expected, 10 * rank)


def test_ranks_are_padded_to_a_multiple_of_eight_for_gpus() -> None:
    a, b = padded(torch.ones(3, 6), torch.ones(5, 3), torch.bfloat16, CARD_STEP)
    assert (list(a.shape), list(b.shape), a.dtype, b.dtype) == ([8, 6], [5, 8], torch.bfloat16, torch.bfloat16)
    assert [float(part.sum()) for part in (a[:3], b[:, :3], a, b)] == [18, 15, 18, 15]
    whole = padded(torch.ones(16, 6), torch.ones(5, 16), torch.bfloat16, CARD_STEP)
    assert (len(whole[0]), whole[1].shape[1]) == (16, 16)


def test_an_adapter_in_16_bit_uses_the_samplers_values() -> None:
    """A float32 adapter in a 16-bit model gets float32 gradients, computed with the values that the sampler uses."""
    draw = torch.Generator().manual_seed(0)
    x, weight, a, b = (torch.randn(shape, generator=draw) for shape in ((10, 6), (5, 6), (2, 6), (5, 2)))
    learned = a.requires_grad_(), b.requires_grad_()

    def of(layer: type[torch.autograd.Function], dtype: torch.dtype) -> tuple[Tensor, ...]:
        parts = (part.to(torch.bfloat16).to(dtype) for part in (x, weight))
        cast = (part.to(torch.bfloat16).to(dtype) if layer is _LoraLinear else part for part in learned)
        given_x, given_weight = parts
        y: Tensor = layer.apply(given_x, given_weight, None, *cast, 32.0)
        return y, *torch.autograd.grad(y.square().sum(), learned)

    y, *gradients = of(_CardLoraLinear, torch.bfloat16)
    exact_y, *exact = of(_LoraLinear, torch.float64)
    assert y.dtype == torch.bfloat16
    assert (y - exact_y).norm() < 2**-7 * exact_y.norm()
    for found, expected in zip(gradients, exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2**-6 * expected.norm()
