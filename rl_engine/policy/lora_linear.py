"""Hidden states → those of a linear layer with a LoRA update, in two passes over the output instead of PEFT's five.

The update is computed in the layer's own precision, from the very values the sampler is given: the adapter is float32,
and its cast to bfloat16 is what vLLM makes of it when it loads it. Shapes: N positions, I inputs and O outputs of the
layer, R its rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_low_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_b_OR = (grad_NO.T @ low_NR).mul_(ctx.scale)
        grad_a_RI = grad_low_NR.T @ x_NI
        grad_x_NI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_low_NR, a_RI)
        return grad_x_NI, None, None, grad_a_RI, grad_b_OR, None


class LoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer with its own forward pass. Names, initial values and files are PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (adapter,) = self.active_adapters
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = self.get_base_layer()
        learned: Any = (self.lora_A[adapter].weight, self.lora_B[adapter].weight)
        a_RI, b_OR = self.served(*learned)
        y_NO = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2),
            base.weight,
            base.bias,
            a_RI.to(x.dtype),
            b_OR.to(x.dtype),
            self.scaling[adapter],
        )
        return y_NO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def remember_start(self) -> None:
        """Take what the adapter is now off it from here on: the layer is then what it was without one."""
        (adapter,) = self.active_adapters
        parts: dict[str, Any] = {"start_a": self.lora_A[adapter], "start_b": self.lora_B[adapter]}
        for name, layer in parts.items():
            self.register_buffer(name, layer.weight.detach().clone(), persistent=False)

    def served(self, a_RI: Tensor, b_OR: Tensor) -> tuple[Tensor, Tensor]:
        """The adapter as it is served, from what learns: with a remembered start [A; A₀] and [B, −B₀]."""
        if not hasattr(self, "start_a"):
            return a_RI, b_OR
        start_a, start_b = (self.get_buffer(name).to(a_RI.device) for name in ("start_a", "start_b"))
        return torch.cat([a_RI, start_a]), torch.cat([b_OR, -start_b], dim=1)

    def outer_parameters(self) -> list[Any]:
        """Parameters of its parts that its own forward pass reads: what ZeRO-3 must gather for it."""
        (adapter,) = self.active_adapters
        return [*self.get_base_layer().parameters(), self.lora_A[adapter].weight, self.lora_B[adapter].weight]
