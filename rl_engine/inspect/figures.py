"""Spectra of modules → the figures of a table or a chart: medians over modules of one kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_engine.inspect.spectrum import Spectrum


# Column → figure of a module; a table shows the median over modules.
FIGURES: dict[str, Callable[[Spectrum], float | None]] = {
    "‖A‖₂": lambda spectrum: spectrum.norm_a,
    "‖B‖₂": lambda spectrum: spectrum.norm_b,
    "‖ΔW‖₂": lambda spectrum: spectrum.norm,
    "‖ΔW‖F": lambda spectrum: spectrum.frobenius,
    "stable rank": lambda spectrum: spectrum.stable_rank,
    "values for 90 %": lambda spectrum: spectrum.energy_rank,
    "of the rank": lambda spectrum: spectrum.used,
}


def by_kind(spectra: Sequence[Spectrum]) -> dict[str, list[Spectrum]]:
    """Modules of one kind together, over all layers: by the last part of their names that is no number."""
    kinds: dict[str, list[Spectrum]] = {}
    for spectrum in spectra:
        kind = next(part for part in reversed(spectrum.module.split(".")) if not part.isdigit())
        kinds.setdefault(kind, []).append(spectrum)
    return kinds


def median_over(spectra: Sequence[Spectrum], figure: Callable[[Spectrum], float | None]) -> float | None:
    """The median over modules; None where the figure does not exist."""
    values = [value for spectrum in spectra if (value := figure(spectrum)) is not None]
    return median(values) if values else None
