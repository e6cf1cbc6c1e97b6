"""Directory of a model → whether its weights are all there, whole and only once, and a digest of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from datafiles.text import first_line

SINGLE = "model.safetensors"
"""File name of a model's weights if they are in a single file."""
INDICES = (f"{SINGLE}.index.json", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"
PICKLE = b"\x80"
"""First byte of what old versions of torch wrote; newer ones write a zip archive."""

PLACES, PLACE_BYTES = 64, 1 << 12
"""How many evenly spaced places of a weight file are hashed, and the bytes read at each."""


def weights_in(directory: Path) -> str | None:
    """A digest of samples taken all over the weights in a model's directory. It detects that a path now holds another
    model: a run's `adapters/latest` moves on, and trainers overwrite their output. None without weights, as for a hub
    id.

    It covers only files that are loaded: a copy in Mistral's own format beside them may be removed to save space.
    """
    digest = hashlib.sha256()
    index = directory / INDICES[0]
    loaded = _named_in(index, "weights") if index.is_file() else {SINGLE}
    files = sorted(path for path in directory.glob("*.safetensors") if path.name in loaded)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for place in range(PLACES):
                file.seek(size * place // PLACES)
                digest.update(file.read(PLACE_BYTES))
    return digest.hexdigest() if files else None


def check_weights(place: Path, key: str) -> None:
    """Raises `FileNotFoundError` if weights are missing, or are only Git LFS pointer files; `ValueError` if a file is
    damaged, or weights are there twice. Only files that would be loaded count: pickles beside safetensors are not."""
    weights = {path.name: path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in place.glob(pattern)}
    if not weights:
        raise FileNotFoundError(f"{key}: {str(place)!r} has no weights (no *.safetensors there)")
    has_safetensors = any(name.endswith(".safetensors") for name in weights)
    indices = INDICES[:1] if has_safetensors else INDICES
    index = next((place / name for name in indices if (place / name).is_file()), None)
    if index is None:
        _check_without_index(place, weights.keys(), key)
        loaded = {SINGLE} if SINGLE in weights else set(weights)
    else:
        loaded = _named_in(index, key)
        missing = sorted(loaded - weights.keys())
        if missing:
            raise FileNotFoundError(
                f"{key}: {str(place)!r} has {len(loaded) - len(missing)} of {len(loaded)} files of weights; "
                f"{missing[0]} is not there"
            )
        if SINGLE in weights and SINGLE not in loaded:
            raise ValueError(
                f"{key}: {str(place)!r} has its weights twice, in {SINGLE}, which transformers reads, and in the "
                f"files of {index.name}, which vLLM reads: remove those that are not meant, an index with its files"
            )
    for name in sorted(loaded):
        _check_readable(weights[name], key)


def _check_readable(path: Path, key: str) -> None:
    """Raises `FileNotFoundError` for a Git LFS pointer, `ValueError` for a file that is damaged or cut off. Reads only
    the table of contents."""
    with path.open("rb") as file:
        beginning = file.read(len(LFS_POINTER))
    if beginning == LFS_POINTER:
        raise FileNotFoundError(
            f"{key}: {path} is a pointer of git-lfs, not the weights: fetch them with `git lfs pull`"
        )
    damage = None
    if path.suffix == ".safetensors":
        try:
            safe_open(path, framework="np")
        except SafetensorError as error:
            damage = first_line(error)
    elif not is_zipfile(path) and not beginning.startswith(PICKLE):
        damage = "its end is missing"
    if damage:
        raise ValueError(f"{key}: {path} is damaged or was not fetched whole ({damage}): fetch it again")


def _check_without_index(place: Path, names: Collection[str], key: str) -> None:
    """Raises `FileNotFoundError` for weight shards without an index, and `ValueError` for further weight files beside a
    single one: without an index vLLM reads all of them and loads the same weight several times."""
    others = sorted(name for name in names if name.endswith(".safetensors") and name != SINGLE)
    if others and SINGLE in names:
        raise ValueError(
            f"{key}: {str(place)!r} has {others[0]} beside {SINGLE}: transformers reads the latter alone, vLLM both; "
            "move what is not meant to another directory"
        )
    if others and "pytorch_model.bin" not in names:
        raise FileNotFoundError(
            f"{key}: {str(place)!r} has {others[0]} but neither {SINGLE} nor {INDICES[0]}, which says which file holds "
            "which weight: fetch the missing file"
        )


def _named_in(index: Path, key: str) -> set[str]:
    """The weight files that an index names. Raises `ValueError` for a damaged index."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{key}: {index} is damaged: {error}") from error
