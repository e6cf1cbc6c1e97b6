"""Published adapters → lines of metrics extended by what `rl_engine.inspect` measures, for the page to draw."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rollout.adapters import MANIFEST, PEFT_CONFIG, AdapterError, AdapterStore, sha256_of

VERSIONS = 16
"""Most versions that are inspected: evenly spaced, including the first and the last."""


def with_spectra(
    run: Path, lines: tuple[Mapping[str, float], ...]
) -> tuple[tuple[Mapping[str, float], ...], list[str]]:
    """Return the lines and a message for each adapter that cannot be inspected; the rest of the run is shown anyway.
    The medians over a version's modules are added to the line of the first step after which that version was current.

    Whole models are skipped: the singular values of all their matrices take minutes.
    """
    store = AdapterStore(run / "adapters")
    steps: dict[int, int] = {}
    for index, line in enumerate(lines):
        # A supervised run's version numbers are its steps.
        version = line.get("adapter/version", line.get("step"))
        if version is not None:
            steps.setdefault(int(version), index)
    adapters = [version for version in store.versions() if (store.path_of(version) / PEFT_CONFIG).is_file()]
    found, damaged = list(lines), []
    for version in evenly([version for version in adapters if version in steps], VERSIONS):
        directory = store.path_of(version)
        index = steps[version]
        try:
            found[index] = {**lines[index], **figures_of(directory, sha256_of(directory / MANIFEST))}
        except AdapterError as error:
            damaged.append(str(error))
    return tuple(found), damaged


def evenly(items: list[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced, including both ends."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


@cache
def figures_of(directory: Path, sha256: str) -> dict[str, float]:
    """Medians over an adapter's modules, cached for --watch; `sha256`, of its manifest, is part of the cache key."""
    # These import torch, which the report of a run without adapters does not need.
    from rl_engine.inspect.deltas import read_version
    from rl_engine.inspect.figures import median_over

    spectra = read_version(directory, None).spectra
    figures = {
        "inside/norm_a": median_over(spectra, lambda one: one.norm_a),
        "inside/norm_b": median_over(spectra, lambda one: one.norm_b),
        "inside/norm_update": median_over(spectra, lambda one: one.frobenius),
        "inside/stable_rank": median_over(spectra, lambda one: one.stable_rank),
        "inside/used_frac": median_over(spectra, lambda one: one.used),
    }
    if not figures["inside/norm_update"]:
        # Nothing has been learned yet, and the stable rank of a zero matrix is undefined.
        del figures["inside/stable_rank"]
    return {name: value for name, value in figures.items() if value is not None}
