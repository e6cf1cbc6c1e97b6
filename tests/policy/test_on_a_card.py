"""What the learner computes in another way where there is a card, computed here both ways on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl_engine.policy.base_model import fuse_norms
from rl_engine.policy.lora_linear import CARD_STEP, _LoraLinear, padded
from tests.helpers.families import tiny_model
from tests.helpers.precision import assert_same_sums

PLAIN = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
OTHERS = ("gemma", "gemma2", "gpt2", "starcoder2")
"""Norms that add one to their weight, or that subtract the mean."""


def outputs(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Last logits, and the gradient of the input embedding."""
    logits = model(input_ids=torch.tensor([[3, 7, 1, 9, 20, 4]])).logits
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    draw = torch.Generator().manual_seed(0)
    (gradient,) = torch.autograd.grad((logits * torch.randn(logits.shape, generator=draw)).sum(), embedding)
    return logits, gradient


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_fused_norms_change_nothing_but_rounding(family: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(family).float().eval()
    with torch.no_grad():  # weights of ones would hide what is done with them
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    expected = outputs(model)
    fuse_norms(model)
    fused = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert bool(fused) == (family in PLAIN), fused
    for found, other in zip(outputs(model), expected, strict=True):
        assert_same_sums(found, other, 64 * 8)


def test_norms_of_a_whole_family_are_fused() -> None:
    model = tiny_model("qwen3")
    fuse_norms(model)
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    assert len(norms) == 2 * 4 + 1  # before attention and MLP, of queries and keys; the last
    assert all("forward" in vars(norm) for norm in norms)


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
def test_a_rank_filled_up_with_zeros_is_the_same_layer(rank: int) -> None:
    draw = torch.Generator().manual_seed(rank)
    x, weight, bias, a, b, upstream = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((10, 6), (5, 6), (5,), (rank, 6), (5, rank), (10, 5))
    )
    learned = [one.requires_grad_() for one in (x, a, b)]

    def of(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        y = _LoraLinear.apply(x, weight, bias, a, b, 0.7)  # type: ignore[no-untyped-call]
        return y, *torch.autograd.grad((y * upstream).sum(), learned)

    more = padded(a, b, CARD_STEP)
    assert len(more[0]) == more[1].shape[1] == -(-rank // CARD_STEP) * CARD_STEP
    for found, expected in zip(of(*more), of(a, b), strict=True):
        assert_same_sums(found, expected, 10 * rank)
