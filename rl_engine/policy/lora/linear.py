"""Hidden states → those of a linear layer with a LoRA update, in two passes over the output instead of PEFT's five.

The update is computed in the layer's own precision, from the very values the sampler is given: the adapter is float32,
and its cast to bfloat16 is what vLLM makes of it when it loads it. Shapes: N positions, I inputs and O outputs of the
layer, R its rank, M trained numbers that layers share.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CARD_STEP = 8
"""A card's fast matrix products take 16-bit rows that begin at multiples of 16 bytes: at rank 1 those for any row took
11 % of a pass (1.5B, H200), half as much again as at rank 8."""


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s · (x Aᵀ) Bᵀ with W and b frozen.

    With g = ∂L/∂y: ∂L/∂B = s · gᵀ (x Aᵀ), ∂L/∂A = (s · g B)ᵀ x, ∂L/∂x = g W + (s · g B) A. Both sums are accumulated by
    the matrix product itself, so that no intermediate has the size of x or y.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        low_NR = x_NI @ a_RI.T
        y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
        y_NO.addmm_(low_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, low_NR)
        ctx.scale = scale
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor, None]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_low_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_b_OR = (grad_NO.T @ low_NR).mul_(ctx.scale)
        grad_a_RI = grad_low_NR.T @ x_NI if ctx.needs_input_grad[3] else None
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_low_NR, a_RI)
        return grad_x_NI, None, None, grad_a_RI, grad_b_OR, None


class _CardLoraLinear(torch.autograd.Function):
    """The same on a card, where a pass at rank 1 waits for the host, which takes 20 µs to ask for a kernel (H200).

    A and B come in float32: they are cast and filled up here, where autograd takes no note of it. The products scale
    by themselves, which rounds once less.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        a_PI, b_OP = padded(a_RI, b_OR, x_NI.dtype, CARD_STEP)
        low_NP = x_NI @ a_PI.T
        y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
        if torch.compiler.is_compiling():
            # That of torch 2.11 computes a gradient of zero for what is changed in its place here.
            y_NO = torch.addmm(y_NO, low_NP, b_OP.T, alpha=scale)
        else:
            y_NO.addmm_(low_NP, b_OP.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_PI, b_OP, low_NP)
        ctx.scale = scale
        ctx.rank, ctx.dtype = len(a_RI), a_RI.dtype
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, Tensor, None]:
        x_NI, weight_OI, a_PI, b_OP, low_NP = ctx.saved_tensors
        grad_low_NP = _scaled(ctx.scale, grad_NO, b_OP)
        grad_b_OR = _scaled(ctx.scale, grad_NO.T, low_NP)[:, : ctx.rank].to(ctx.dtype)
        grad_a_RI = (grad_low_NP.T @ x_NI)[: ctx.rank].to(ctx.dtype) if ctx.needs_input_grad[3] else None
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_low_NP, a_PI)
        return grad_x_NI, None, None, grad_a_RI, grad_b_OR, None


def _scaled(scale: float, left: Tensor, right: Tensor) -> Tensor:
    """The product times `scale`, in one kernel: what it would be added to counts for nothing."""
    return torch.addmm(right.new_empty(()), left, right, beta=0, alpha=scale)


def padded(a_RI: Tensor, b_OR: Tensor, dtype: torch.dtype, step: int) -> tuple[Tensor, Tensor]:
    """The same update in that precision, at the next rank P that is a multiple of `step`: what is added is zero, and
    learns nothing."""
    rank, inputs = a_RI.shape
    more = -rank % step
    if not more:
        return a_RI.to(dtype), b_OR.to(dtype)
    a_PI = a_RI.new_zeros(rank + more, inputs, dtype=dtype)
    b_OP = b_OR.new_zeros(len(b_OR), rank + more, dtype=dtype)
    a_PI[:rank], b_OP[:, :rank] = a_RI, b_OR
    return a_PI, b_OP


class LoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer with its own forward pass. Names, initial values and files are PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (adapter,) = self.active_adapters
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        a_RI, b_OR = self.served(*self.learned())
        given = x.flatten(0, -2), base.weight, base.bias
        if x.is_cuda:
            y_NO = _CardLoraLinear.apply(*given, a_RI, b_OR, self.scaling[adapter])  # type: ignore[no-untyped-call]
        else:
            a_RI, b_OR = a_RI.to(x.dtype), b_OR.to(x.dtype)
            y_NO = _LoraLinear.apply(*given, a_RI, b_OR, self.scaling[adapter])  # type: ignore[no-untyped-call]
        return y_NO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def remember_start(self) -> None:
        """Take what the adapter is now off it from here on: the layer is then what it was without one."""
        (adapter,) = self.active_adapters
        parts: dict[str, Any] = {"start_a": self.lora_A[adapter], "start_b": self.lora_B[adapter]}
        for name, layer in parts.items():
            self.register_buffer(name, layer.weight.detach().clone(), persistent=False)

    def tie(self, numbers_M: nn.Parameter, a_RI: Tensor, b_OR: Tensor, projections_MRR: Tensor) -> None:
        """Let nothing but `numbers_M`, which all layers share, learn from here on: see `lora.start.tie_to_numbers`."""
        # Gone, and not frozen: PEFT lets A and B learn again whenever it switches an adapter off and on.
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.numbers = numbers_M
        for name, tensor in (("fixed_a", a_RI), ("fixed_b", b_OR), ("projections", projections_MRR)):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def is_tied(self) -> bool:
        """Whether what learns is shared with other layers."""
        return "numbers" in self._parameters  # `hasattr` of a module costs 10 µs where the answer is no

    def learned(self) -> tuple[nn.Parameter, ...]:
        """What learns of it: A and B, or the numbers that it shares."""
        if self.is_tied:
            return (self.numbers,)
        (adapter,) = self.active_adapters
        learned: Any = (self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        return learned  # type: ignore[no-any-return]

    def served(self, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """The adapter as it is served, from what learns: with a remembered start [A; A₀] and [B, −B₀], with shared
        numbers Vᵀ and UΣ(Σᵢ vᵢ Pᵢ)."""
        names = ("fixed_a", "fixed_b", "projections") if self.is_tied else ("start_a", "start_b")
        kept = [self.get_buffer(name).to(learned[0].device) for name in names if name in self._buffers]
        if self.is_tied:
            (numbers_M,), (a_RI, b_OR, projections_MRR) = learned, kept
            return a_RI, b_OR @ torch.einsum("m,mrs->rs", numbers_M, projections_MRR)
        a_RI, b_OR = learned
        if not kept:
            return a_RI, b_OR
        start_a, start_b = kept
        return torch.cat([a_RI, start_a]), torch.cat([b_OR, -start_b], dim=1)

    def outer_parameters(self) -> list[Any]:
        """Parameters of its parts that its own forward pass reads: what ZeRO-3 must gather for it."""
        return [*self.get_base_layer().parameters(), *self.learned()]
