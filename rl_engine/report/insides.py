"""Published adapters → lines of metrics with what `rl_engine.inspect` sees in them, so that the page can draw it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rollout.adapters import MANIFEST, PEFT_CONFIG, AdapterError, AdapterStore, sha256_of

VERSIONS = 16
"""Versions that are looked into, evenly spaced, the first and the last among them."""


def with_insides(
    run: Path, lines: tuple[Mapping[str, float], ...]
) -> tuple[tuple[Mapping[str, float], ...], list[str]]:
    """The lines; those of the first step after which a version was current hold the medians over its modules too. And a
    line for each adapter that cannot be looked into, which is no reason to show nothing of a run.

    Whole models are left out: the singular values of all their matrices take minutes.
    """
    store = AdapterStore(run / "adapters")
    steps: dict[int, int] = {}
    for index, line in enumerate(lines):
        # A supervised run numbers its versions by its steps.
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
    """At most so many of the items, evenly spaced, with both ends."""
    if len(items) <= count:
        return items
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


@cache
def figures_of(directory: Path, sha256: str) -> dict[str, float]:
    """Medians over the modules of an adapter whose manifest has this digest: read once, though the page is watched."""
    # They load torch, which a report of a run without adapters has no need of.
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
        # Nothing is learned yet: a matrix of zeros has no shape.
        del figures["inside/stable_rank"]
    return {name: value for name, value in figures.items() if value is not None}
