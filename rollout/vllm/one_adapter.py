"""Hidden states → hidden states with the adapter's share, where one adapter serves the whole batch (CPU).

vLLM's CPU wrapper copies the adapter's matrices once per token and multiplies each token by its own copy. With
one adapter that is one product with A and one with B for all tokens. vLLM asks its platform which wrapper to
build; `rollout/vllm/arguments.py` answers with this one.

Nor is a CPU model compiled here: norms and rotations would run as many small steps. vLLM's CPU build has each as one
kernel, which `KERNELS` selects, with an adapter and without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import ir
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

PROVIDER = "rl_engine_cpu"
KERNELS = {
    "ir_op_priority": {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]},
    "compilation_config": {"custom_ops": ["none", "+rotary_embedding"]},
}
"""Engine arguments. For float32 alone: in bfloat16 these kernels round at other places than the learner's do."""

Rows = bool | Tensor
"""Which rows the adapter serves: all, none, or a column of ones and zeros."""


class OneAdapterWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is unannotated
    """Adds x·Aᵀ·Bᵀ to y in place, for the adapter in slot 0. Valid for `max_loras=1` only.

    Shapes: y [T, Σ outputs], x [T, inputs], each A [1, 1, rank, inputs], each B [1, 1, outputs, rank].
    """

    _tokens: Rows = False
    _sampled: Rows = False

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM when the batch changes: the one place that looks at single rows."""
        super().update_metadata(*args, **kwargs)
        self._tokens = served_rows(self.token_lora_indices)
        self._sampled = served_rows(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """The product of a layer, or of several that vLLM fused into one: q, k and v, gate and up."""
        if not add_inputs:
            y.zero_()
        add_products(y, x, [a[0, 0] for a in lora_a_stacked], [b[0, 0] for b in lora_b_stacked], scale, self._tokens)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """The product of the output head, whose rows are the sampled positions; y and B may be padded differently."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        b = lora_b_stacked[0, 0, : y.shape[-1]]
        add_products(y, x, [lora_a_stacked[0, 0]], [b], scale, self._sampled)


def served_rows(indices: Tensor) -> Rows:
    """Rows by vLLM's index of adapters: 0, or -1 where there is none."""
    served = indices >= 0
    if bool(served.all()):
        return True
    return served.unsqueeze(-1) if bool(served.any()) else False


def add_products(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, rows: Rows) -> None:
    """y[:, slice i] ← y[:, slice i] + scale · x·aᵢᵀ·bᵢᵀ on the served rows, in place and in y's precision.

    The slices lie side by side, each as wide as its b has rows.
    """
    if rows is False:
        return
    # One product for all slices: x is read once, and a product with a single column is slow in bfloat16.
    shrunk = torch.nn.functional.linear(x.to(y.dtype), (a[0] if len(a) == 1 else torch.cat(a)).to(y.dtype))
    if isinstance(rows, Tensor):
        shrunk *= rows
    rank, begin = a[0].shape[0], 0
    for i, expand in enumerate(b):
        part, width = shrunk[:, i * rank : (i + 1) * rank], expand.shape[0]
        target, columns = y[:, begin : begin + width], expand.T.to(y.dtype)
        if rank == 1:
            # An outer product, element by element: in bfloat16 twice as fast as a matrix product of depth one.
            target.addcmul_(part, columns, value=scale)
        else:
            target.addmm_(part, columns, alpha=scale)
        begin += width


def _norm_fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """What the kernel can take; vLLM's own steps take the rest."""
    return variance_size is None and weight is not None and x.dtype == weight.dtype == torch.float32


def _add_norm_fits(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return x.is_contiguous() and x_residual.is_contiguous() and _norm_fits(x, weight, epsilon, variance_size)


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_norm_fits)  # type: ignore[untyped-decorator]
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x over its root mean square along the last axis, times the weight."""
    x = x.contiguous()
    y = torch.empty_like(x)
    torch.ops._C.rms_norm(y, x, weight, epsilon)
    return y


@ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_add_norm_fits, inplace=True)  # type: ignore[untyped-decorator]
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum, in place of the two."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
