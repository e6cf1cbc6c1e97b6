"""An adapter or trained model on disk → the spectrum of each module's update. Reads safetensors, loads no model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rl_engine.inspect.spectrum import Spectrum, spectrum_of_factors, spectrum_of_matrix
from rollout.adapters import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, AdapterError, AdapterStore, read_manifest
from rollout.models import locate_model
from rollout.peft_format import FACTOR, rank_and_scale, read_peft


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpectra:
    """The spectra of one version of an adapter or a trained model."""

    path: Path
    spectra: tuple[Spectrum, ...]


def read_version(directory: Path, base: Path | None, only: str = "") -> VersionSpectra:
    """The spectra of a version's modules whose names contain `only`, in the order of its file.

    Args:
        directory: An adapter in PEFT's format, or a trained model.
        base: The model that a trained model started from, a directory or `embedded`; if None, version 0 next to it, or
            else the base named in its manifest.

    Raises `AdapterError` if the version is damaged, not a plain LoRA or not trained from that base, `FileNotFoundError`
    if a trained model's base is not found.
    """
    directory = directory.resolve()
    if (directory / MANIFEST).is_file():
        read_manifest(directory)
    if base is not None and not base.is_dir():
        base = Path(locate_model(str(base), "--base"))
    spectra = (
        _of_adapter(directory, only)
        if (directory / PEFT_CONFIG).is_file()
        else _of_model(directory, base or _base_of(directory), only)
    )
    found = tuple(spectra)
    if not found:
        raise AdapterError(f"{directory} has no update of a module whose name contains {only!r}")
    return VersionSpectra(path=directory, spectra=found)


def _of_adapter(directory: Path, only: str) -> Iterator[Spectrum]:
    """Spectra of a LoRA adapter's modules."""
    peft_config = read_peft(directory)
    with safe_open(directory / PEFT_WEIGHTS, framework="pt") as file:
        names: dict[str, dict[str, str]] = {}
        for name in file.keys():  # noqa: SIM118  (not a dict)
            if (match := FACTOR.match(name)) and only in match["module"]:
                names.setdefault(match["module"], {})[match["factor"]] = name
        for module, factors in names.items():
            rank, scale = rank_and_scale(peft_config, module)
            a_RI, b_OR = (_numbers(directory, factors[factor], file.get_tensor(factors[factor])) for factor in "AB")
            yield from _of_experts(module, a_RI, b_OR, rank, scale)


def _of_experts(module: str, a_RI: Tensor, b_OR: Tensor, rank: int, scale: float) -> Iterator[Spectrum]:
    """Spectra per expert. PEFT stacks a mixture's experts in A by expert, then rank, and in B by rank, then expert."""
    experts = a_RI.shape[0] // rank
    if experts == 1:
        yield spectrum_of_factors(module, a_RI, b_OR, scale)
        return
    a_ERI, b_ORE = a_RI.unflatten(0, (experts, rank)), b_OR.unflatten(1, (rank, experts))
    for expert in range(experts):
        yield spectrum_of_factors(f"{module}.{expert}", a_ERI[expert], b_ORE[..., expert], scale)


def _of_model(directory: Path, base: Path, only: str) -> Iterator[Spectrum]:
    """Spectra of a trained model's matrices and stacks of matrices; vectors are skipped."""
    before = _files(base)
    for name, path in _files(directory).items():
        if only not in name:
            continue
        if name not in before:
            raise AdapterError(f"{directory} has {name}, and {base} does not: give its own base as --base")
        with safe_open(path, framework="pt") as new, safe_open(before[name], framework="pt") as old:
            shape, began = (file.get_slice(name).get_shape() for file in (new, old))
            if shape != began:
                raise AdapterError(
                    f"{name} has shape {shape} in {directory} and {began} in {base}: give its own base as --base"
                )
            if len(shape) < 2:
                continue
            delta = _numbers(directory, name, new.get_tensor(name).float() - old.get_tensor(name).float())
        module = name.removesuffix(".weight")
        if delta.dim() == 2:
            yield spectrum_of_matrix(module, delta)
        else:
            yield from (spectrum_of_matrix(f"{module}.{index}", one) for index, one in enumerate(delta))


def _numbers(directory: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor, unchanged. Raises `AdapterError` if it has infinite values or NaN, as after training has diverged."""
    if not tensor.isfinite().all():
        raise AdapterError(f"{name} in {directory} has infinite or NaN values, and so no spectrum")
    return tensor


def _files(model: Path) -> dict[str, Path]:
    """Tensor name → the file that holds it."""
    found = {}
    for path in sorted(model.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise AdapterError(f"{path} is damaged: {error}") from error
    if not found:
        raise FileNotFoundError(f"{model} has no safetensors files")
    return found


def _base_of(directory: Path) -> Path:
    """The model that a trained model started from."""
    first = AdapterStore(directory.parent).path_of(0)
    if first.is_dir():
        return first
    if (directory / MANIFEST).is_file():
        name = json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("base_model", "")
        if name and Path(locate_model(name)).is_dir():
            return Path(locate_model(name))
    raise FileNotFoundError(f"{directory} is a full model, and its base model was not found: give it as --base")
