"""Spectra of modules → the figures in a table or chart: medians over modules of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_engine.inspect.spectrum import Spectrum


# Column → function giving the figure of a module; tables show the median over modules.
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
    """Modules grouped by kind over all layers. The kind is the last part of a module's name that is not a number."""
    kinds: dict[str, list[Spectrum]] = {}
    for spectrum in spectra:
        kind = next(part for part in reversed(spectrum.module.split(".")) if not part.isdigit())
        kinds.setdefault(kind, []).append(spectrum)
    return kinds


def median_over(spectra: Sequence[Spectrum], figure: Callable[[Spectrum], float | None]) -> float | None:
    """The median over modules; None if no module has the figure."""
    values = [value for spectrum in spectra if (value := figure(spectrum)) is not None]
    return median(values) if values else None
