"""The update of a weight matrix → its singular values, summarized in a few figures.

For LoRA the product B·A is never formed: with B = Q_B R_B and Aᵀ = Q_A R_A, the singular values of B·A are those of the
r × r matrix R_B R_Aᵀ, since Q_B and Q_A have orthonormal columns. Shapes: I inputs and O outputs of a layer, R its
rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENERGY = 0.9
"""Share of the sum of squared singular values that `energy_rank` must reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Figures of one module's update ΔW.

    Example: `Spectrum(module="model.layers.0.mlp.up_proj", rank=8, norm_a=0.9, norm_b=1.2, norm=3.1, …)`
    """

    module: str
    rank: int
    """Maximum number of nonzero singular values: the adapter's rank, or the shorter side of a full matrix."""
    norm_a: float | None
    """‖A‖₂; None if the update has no factors."""
    norm_b: float | None
    norm: float
    """‖ΔW‖₂, the largest singular value, α/r included."""
    frobenius: float
    stable_rank: float
    """‖ΔW‖²_F / ‖ΔW‖²₂: how many directions carry the update, if all were as strong as the first; 0 if ΔW is zero."""
    energy_rank: int
    """Fewest singular values that hold 90 % of ‖ΔW‖²_F; 0 for no update."""

    @property
    def used(self) -> float:
        """Share of the rank that is used: energy_rank / rank."""
        return self.energy_rank / self.rank


def spectrum_of_factors(module: str, a_RI: Tensor, b_OR: Tensor, scale: float) -> Spectrum:
    """The spectrum of scale · B·A, in float64."""
    r_a = torch.linalg.qr(a_RI.double().T, mode="r").R
    r_b = torch.linalg.qr(b_OR.double(), mode="r").R
    return _spectrum(
        module,
        scale * torch.linalg.svdvals(r_b @ r_a.T),
        rank=min(a_RI.shape[0], a_RI.shape[1], b_OR.shape[0]),
        norm_a=float(torch.linalg.svdvals(r_a)[0]),
        norm_b=float(torch.linalg.svdvals(r_b)[0]),
    )


def spectrum_of_matrix(module: str, delta_OI: Tensor) -> Spectrum:
    """The spectrum of a full matrix, in float32."""
    return _spectrum(
        module, torch.linalg.svdvals(delta_OI.float()).double(), rank=min(delta_OI.shape), norm_a=None, norm_b=None
    )


def _spectrum(module: str, values: Tensor, *, rank: int, norm_a: float | None, norm_b: float | None) -> Spectrum:
    """`values` are singular values, largest first."""
    squares = values.square()
    total, largest = float(squares.sum()), float(values[0])
    held = squares.cumsum(0)
    return Spectrum(
        module=module,
        rank=rank,
        norm_a=norm_a,
        norm_b=norm_b,
        norm=largest,
        frobenius=total**0.5,
        stable_rank=total / largest**2 if largest > 0 else 0.0,
        # Compare with the cumulative sum's own total, so that rounding cannot ask for more values than there are.
        energy_rank=int((held < ENERGY * held[-1]).sum()) + 1 if largest > 0 else 0,
    )
