"""Path → the versions found there."""

from __future__ import annotations

from pathlib import Path

from rollout.adapters import PEFT_CONFIG, AdapterStore, adapters_inside, missing_version


def directories(path: Path) -> list[Path]:
    """The directories of all versions that a run has published, in order, or else the given directory itself.

    Raises `FileNotFoundError` if `path` is neither.
    """
    for root in (path / "adapters", path):
        store = AdapterStore(root)
        if found := store.versions():
            return [store.path_of(version) for version in found]
    if not any((path / name).is_file() for name in (PEFT_CONFIG, "config.json")):
        raise FileNotFoundError(
            missing_version(path)
            or f"{path} is not an adapter, a model or a run: there is no {PEFT_CONFIG} and no adapters/"
            f"{adapters_inside(path)}"
        )
    return [path]
