"""Hidden states → hidden states plus the adapters' contribution, for batches served by one or a few adapters (CPU).

vLLM's CPU wrapper copies an adapter's matrices once per token and multiplies each token by its own copy. Here all rows
of an adapter are multiplied together, by one product with A and one with B. vLLM asks its platform which wrapper to
build, and `rollout/vllm/arguments.py` makes it return this one.

A CPU model is not compiled here, so norms and rotary embeddings would run as many small operations. vLLM's CPU build
has a kernel for each, which `KERNELS` selects, with and without adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
"""Engine arguments, for float32 only: in bfloat16 these kernels round at other places than the learner's do."""

Rows = slice | Tensor
"""The rows that an adapter serves: a slice if they are consecutive, else their indices [N]."""


@dataclass(frozen=True, slots=True)
class Matrices:
    """An adapter's matrices for one layer, without the padding to the largest rank."""

    a: Tensor
    """[Σ ranks, inputs], the A of all slices stacked: x is read only once, and products with a single column, which are
    slow in bfloat16, are avoided."""
    b: tuple[Tensor, ...]
    """Each [outputs, rank]."""
    rank: int
    """The rank of each slice; 0 if the adapter does not change the layer."""

    @classmethod
    def of(cls, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Matrices:
        """From vLLM's padded matrices of one adapter: each A [largest rank, inputs], each B [outputs, largest rank]."""
        rank = max(int(part.any(dim=1).nonzero().max()) + 1 if part.any() else 0 for part in a)
        return cls(torch.cat([part[:rank] for part in a]), tuple(part[:, :rank].contiguous() for part in b), rank)


@dataclass(slots=True)
class Slots:
    """The matrices of the adapters in vLLM's slots, built when a layer first needs them."""

    ids: list[int | None] = field(default_factory=list)
    """vLLM's id of the adapter in each slot. Ids are never reused."""
    _made: dict[tuple[int, int], Matrices] = field(default_factory=dict)
    """By slot and layer, the latter identified by the address of its first A."""

    def fill(self, ids: list[int | None]) -> None:
        """Drop the matrices of adapters that have left their slot."""
        if ids != self.ids:
            kept = {slot for slot, (now, before) in enumerate(zip(ids, self.ids, strict=False)) if now == before}
            self._made = {key: made for key, made in self._made.items() if key[0] in kept}
            self.ids = list(ids)

    def matrices(self, slot: int, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> Matrices:
        key = slot, a_stacked[0].data_ptr()
        if key not in self._made:
            self._made[key] = Matrices.of(tuple(a[slot, 0] for a in a_stacked), tuple(b[slot, 0] for b in b_stacked))
        return self._made[key]


class FewAdaptersWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is unannotated
    """Adds x·Aᵀ·Bᵀ to y in place, for each row by the A and B of its adapter.

    Shapes, with S slots: y [T, Σ outputs], x [T, inputs], each A [S, 1, rank, inputs], each B [S, 1, outputs, rank].
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots = Slots()
        self._tokens: list[tuple[int, Rows]] = []
        self._sampled: list[tuple[int, Rows]] = []

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        """Called by vLLM when the batch changes or an adapter is added: the only place that looks at single rows."""
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)
        self._slots.fill(lora_index_to_id)
        self._tokens = rows_by_slot(self.token_lora_indices)
        self._sampled = rows_by_slot(self.sampler_indices)

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
        for slot, rows in self._tokens:
            add_products(y, x, self._slots.matrices(slot, lora_a_stacked, lora_b_stacked), scale, rows)

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
        b = lora_b_stacked[:, :, : y.shape[-1]]
        for slot, rows in self._sampled:
            add_products(y, x, self._slots.matrices(slot, (lora_a_stacked,), (b,)), scale, rows)


def rows_by_slot(indices: Tensor) -> list[tuple[int, Rows]]:
    """The slots of a batch, each with its rows, by vLLM's index of slots: -1 for a row without an adapter.

    If one adapter serves all rows it gets every row that exists: when a prompt is scored, the head has more rows than
    vLLM's index covers.
    """
    slots = indices.unique().tolist()
    if len(slots) == 1 and slots[0] >= 0:
        return [(slots[0], slice(None))]
    found: list[tuple[int, Rows]] = []
    for slot in slots:
        if slot >= 0:
            numbers = (indices == slot).nonzero().squeeze(1)
            first, last = int(numbers[0]), int(numbers[-1])
            found.append((slot, slice(first, last + 1) if last - first + 1 == len(numbers) else numbers))
    return found


def add_products(y: Tensor, x: Tensor, matrices: Matrices, scale: float, rows: Rows) -> None:
    """y[rows, slice i] ← y[rows, slice i] + scale · x[rows]·aᵢᵀ·bᵢᵀ, in place and in y's precision.

    The slices of y are adjacent, each as wide as its b has rows.
    """
    if matrices.rank == 0:
        return
    served = y[rows]
    shrunk = torch.nn.functional.linear(x[rows].to(y.dtype), matrices.a.to(y.dtype))
    begin = 0
    for i, expand in enumerate(matrices.b):
        part, width = shrunk[:, i * matrices.rank : (i + 1) * matrices.rank], expand.shape[0]
        target, columns = served[:, begin : begin + width], expand.T.to(y.dtype)
        if matrices.rank == 1:
            # An elementwise outer product: in bfloat16 twice as fast as a matrix product with inner dimension 1.
            target.addcmul_(part, columns, value=scale)
        else:
            target.addmm_(part, columns, alpha=scale)
        begin += width
    if isinstance(rows, Tensor):
        y[rows] = served


def _norm_fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Whether the kernel supports these arguments; vLLM's own implementation handles the rest."""
    return variance_size is None and weight is not None and x.dtype == weight.dtype == torch.float32


def _add_norm_fits(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return x.is_contiguous() and x_residual.is_contiguous() and _norm_fits(x, weight, epsilon, variance_size)


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_norm_fits)  # type: ignore[untyped-decorator]
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x divided by its root mean square along the last axis, times the weight."""
    x = x.contiguous()
    y = torch.empty_like(x)
    torch.ops._C.rms_norm(y, x, weight, epsilon)
    return y


@ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_add_norm_fits, inplace=True)  # type: ignore[untyped-decorator]
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of x + x_residual, and that sum; both inputs are overwritten."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
