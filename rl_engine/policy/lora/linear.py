"""Hidden states → those of a linear layer with a LoRA update, in two passes over the output instead of PEFT's five.

The update is computed in the layer's own precision, from exactly the values that the sampler uses: the adapter is
float32, and vLLM casts it to bfloat16 in the same way when it loads it. Shapes: N positions, I inputs and O outputs of
the layer, R its rank, M trained numbers that the layers share.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CARD_STEP = 8
"""A GPU's fast 16-bit matrix products need rows aligned to 16 bytes. At rank 1 the unaligned kernels took 11 % of a
pass (1.5B, H200), half as much again as at rank 8."""


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s · (x Aᵀ) Bᵀ with W and b frozen.

    With g = ∂L/∂y: ∂L/∂B = s · gᵀ (x Aᵀ), ∂L/∂A = (s · g B)ᵀ x, ∂L/∂x = g W + (s · g B) A. The matrix products
    accumulate into y and ∂L/∂x in place, so that there is no further intermediate of the size of x or y.
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
    """The same on a GPU, where a pass at rank 1 is bound by the host, which takes 20 µs to launch a kernel (H200).

    A and B arrive in float32 and are cast and padded in here, where autograd does not record it. The products apply the
    scale themselves, which saves one rounding.
    """

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        a_PI, b_OP = padded(a_RI, b_OR, x_NI.dtype, CARD_STEP)
        low_NP = x_NI @ a_PI.T
        y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
        if torch.compiler.is_compiling():
            # The compiler of torch 2.11 computes a gradient of zero for the in-place version.
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
    """The product times `scale`, in one kernel; with beta=0 the addend is ignored."""
    return torch.addmm(right.new_empty(()), left, right, beta=0, alpha=scale)


def padded(a_RI: Tensor, b_OR: Tensor, dtype: torch.dtype, step: int) -> tuple[Tensor, Tensor]:
    """The same update in `dtype`, with zeros padding the rank to P, the next multiple of `step`. The padding is not
    trained."""
    rank, inputs = a_RI.shape
    more = -rank % step
    if not more:
        return a_RI.to(dtype), b_OR.to(dtype)
    a_PI = a_RI.new_zeros(rank + more, inputs, dtype=dtype)
    b_OP = b_OR.new_zeros(len(b_OR), rank + more, dtype=dtype)
    a_PI[:rank], b_OP[:, :rank] = a_RI, b_OR
    return a_PI, b_OP


class LoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer with a forward pass of our own. Names, initial values and files are PEFT's."""

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
        """Subtract the adapter's current value from now on, so that the layer first computes the same as the base."""
        (adapter,) = self.active_adapters
        parts: dict[str, Any] = {"start_a": self.lora_A[adapter], "start_b": self.lora_B[adapter]}
        for name, layer in parts.items():
            self.register_buffer(name, layer.weight.detach().clone(), persistent=False)

    def tie(self, numbers_M: nn.Parameter, a_RI: Tensor, b_OR: Tensor, projections_MRR: Tensor) -> None:
        """Make `numbers_M`, which all layers share, the only trainable parameters: see `lora.start.tie_to_numbers`."""
        # Removed rather than frozen: PEFT unfreezes A and B whenever it switches an adapter off and on.
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.numbers = numbers_M
        for name, tensor in (("fixed_a", a_RI), ("fixed_b", b_OR), ("projections", projections_MRR)):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def is_tied(self) -> bool:
        """Whether the trained numbers are shared with other layers."""
        return "numbers" in self._parameters  # `hasattr` on a module costs 10 µs when the answer is no

    def learned(self) -> tuple[nn.Parameter, ...]:
        """The layer's trainable parameters: A and B, or the shared numbers."""
        if self.is_tied:
            return (self.numbers,)
        (adapter,) = self.active_adapters
        learned: Any = (self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        return learned  # type: ignore[no-any-return]

    def served(self, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """The served factors, computed from the trained tensors: [A; A₀] and [B, −B₀] with a remembered start, Vᵀ and
        UΣ(Σᵢ vᵢ Pᵢ) with shared numbers, otherwise A and B."""
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
        """Parameters of submodules that this layer's own forward pass reads, which ZeRO-3 must gather for it."""
        return [*self.get_base_layer().parameters(), *self.learned()]
