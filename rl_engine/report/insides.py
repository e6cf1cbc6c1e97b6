"""Published adapters → lines of metrics with what `rl_engine.inspect` sees in them, so that the page can draw it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rollout.adapters import AdapterStore

ADAPTER_CONFIG = "adapter_config.json"
VERSIONS = 16
"""Versions that are looked into, evenly spaced, the first and the last among them."""


def with_insides(run: Path, lines: tuple[Mapping[str, float], ...]) -> tuple[Mapping[str, float], ...]:
    """The lines; those of the first step after which a version was current hold the medians over its modules too.

    Whole models are left out: the singular values of all their matrices take minutes.
    """
    store = AdapterStore(run / "adapters")
    steps: dict[int, int] = {}
    for index, line in enumerate(lines):
        steps.setdefault(int(line["adapter/version"]), index)
    adapters = [version for version in store.versions() if (store.path_of(version) / ADAPTER_CONFIG).is_file()]
    found = list(lines)
    for version in evenly([version for version in adapters if version in steps], VERSIONS):
        index = steps[version]
        found[index] = {**lines[index], **figures_of(store.path_of(version))}
    return tuple(found)


def evenly(items: list[int], count: int) -> list[int]:
    """At most so many of them, evenly spaced, with both ends."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def figures_of(directory: Path) -> dict[str, float]:
    """Medians over the modules of an adapter."""
    # They load torch, which a report of a run without adapters has no need of.
    from rl_engine.deltas import read_version
    from rl_engine.inspect import middle

    spectra = read_version(directory, None).spectra
    figures = {
        "inside/norm_a": middle(spectra, lambda one: one.norm_a),
        "inside/norm_b": middle(spectra, lambda one: one.norm_b),
        "inside/norm_update": middle(spectra, lambda one: one.frobenius),
        "inside/stable_rank": middle(spectra, lambda one: one.stable_rank),
        "inside/used_frac": middle(spectra, lambda one: one.used),
    }
    return {name: value for name, value in figures.items() if value is not None}
