"""An adapter in PEFT's format → its settings, after checking that it is W + s·B·A and nothing more; rank and scale of
each module by PEFT's rules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from datafiles.text import read_json
from rollout.adapters import PEFT_CONFIG, PEFT_WEIGHTS, AdapterError

PREFIX = "base_model.model."
FACTOR = re.compile(rf"^(?:{re.escape(PREFIX)})?(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?$")
# Fields that do not change what an adapter computes, or whose effect shows in the names and shapes of its tensors. Any
# other field that is set, by this version of PEFT or a later one, may make it something else.
UNDERSTOOD = re.compile(
    "alpha_pattern|auto_mapping|base_model_name_or_path|corda_config|eva_config|exclude_modules|fan_in_fan_out|"
    "inference_mode|init_lora_weights|layers_pattern|layers_to_transform|loftq_config|lora_alpha|lora_dropout|"
    "lora_ga_config|megatron_config|megatron_core|peft_type|peft_version|qalora_group_size|r|rank_pattern|revision|"
    "target_modules|target_parameters|task_type|use_rslora"
)
EMPTY: tuple[Any, ...] = (None, False, "none", [], {})
# With any other initialization, PEFT subtracts B₀·A₀ from the base weights when it loads the adapter.
PLAIN_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica", "lora_ga")
REMEDY = "merge it into its model with PEFT (merge_and_unload), and use the result as the model"


def read_peft(directory: Path, key: str = "") -> dict[str, Any]:
    """Content of adapter_config.json. `key` is the option or key that named the directory, for messages.

    Raises a one-line `AdapterError` for an adapter that is damaged or more than W + s·B·A.
    """
    where = f"{key}: {directory}" if key else str(directory)
    try:
        settings = read_json((directory / PEFT_CONFIG).read_text(encoding="utf-8"))
        problem = _problem_of(settings)
    except FileNotFoundError:
        raise AdapterError(f"{where} holds no {PEFT_CONFIG}") from None
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise AdapterError(f"{where}: {PEFT_CONFIG} is damaged: {problem}")
    if (kind := settings.get("peft_type")) != "LORA":
        raise AdapterError(f"{where}: peft_type is {kind!r}, and only LORA is supported: {REMEDY}")
    if more := more_than_lora(settings):
        raise AdapterError(f"{where} is not a plain LoRA adapter ({', '.join(more)}): {REMEDY}")
    if problem := _problem_of_tensors(settings, _shapes(directory, where)):
        raise AdapterError(f"{where}: {problem}")
    return dict(settings)


def more_than_lora(settings: Mapping[str, Any]) -> list[str]:
    """`FIELD=VALUE` for each field that makes the adapted model something other than W + s·B·A."""
    found = {name: value for name, value in settings.items() if not UNDERSTOOD.fullmatch(name) and value not in EMPTY}
    start = settings.get("init_lora_weights")
    if str(start).lower() not in PLAIN_STARTS:
        found["init_lora_weights"] = start
    return [f"{name}={value}" for name, value in found.items()]


def _problem_of(settings: Any) -> str:
    """What is wrong with the numbers in adapter_config.json; empty if they are usable."""
    if not isinstance(settings, dict):
        return "it is no JSON object"
    if settings.get("peft_type") != "LORA":
        return ""  # other PEFT types have other fields
    for name, least in (("r", 1), ("lora_alpha", -math.inf)):
        patterns = settings.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[name]) or {}
        if not isinstance(patterns, dict):
            return f"the pattern of {name} is {patterns!r}"
        for value in (settings.get(name), *patterns.values()):
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{name} is {value!r}"
            if not math.isfinite(value) or value < least:
                return f"{name} is {value!r}"
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"the pattern {pattern!r} of {name} is no regular expression: {error}"
    return ""


def _shapes(directory: Path, where: str) -> dict[str, tuple[int, ...]]:
    weights = directory / PEFT_WEIGHTS
    if not weights.is_file():
        pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (directory / name).is_file()), "")
        why = f", and {pickled} is a pickle, which may run code: load it with PEFT and save it again" if pickled else ""
        raise AdapterError(f"{where} has no {PEFT_WEIGHTS}{why}")
    try:
        with safe_open(weights, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{where}: {PEFT_WEIGHTS} is damaged: {error}") from error


def _problem_of_tensors(settings: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A message if some tensor is not one of two LoRA factors of the rank that the settings give; empty otherwise."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        found = FACTOR.match(name)
        if found is None or len(shape) != 2:
            return f"{name} {list(shape)} is not a LoRA factor (A or B) and would be ignored: {REMEDY}"
        factors.setdefault(found["module"], {})[found["factor"]] = shape
    if not factors:
        return f"{PEFT_WEIGHTS} is empty"
    for module, both in factors.items():
        if both.keys() != {"A", "B"}:
            return f"{module} has only one of the factors A and B"
        rank, _ = rank_and_scale(settings, module)
        stated = both["A"][0] % rank if settings.get("target_parameters") else both["A"][0] - rank
        if stated or both["A"][0] != both["B"][1]:
            return f"{module} has factors of rank {both['A'][0]} and {both['B'][1]}, and {PEFT_CONFIG} says {rank}"
    return ""


def refuse_misfit(
    directory: Path, model: str, sizes: Mapping[str, tuple[int, int] | None], *, all_named: bool = True
) -> None:
    """Raises `AdapterError` for an adapter of another model. vLLM would skip layers that its model lacks, and copy
    factors that are too small into its larger buffers.

    Args:
        directory: An adapter that `read_peft` accepts.
        model: Name of the model, for messages.
        sizes: See `rollout.models.layer_sizes`.
        all_named: Whether every layer must be in `sizes` under the adapter's name for it. The layers of multimodal
            wrappers are served under more than one name, and experts are stacked.
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in _shapes(directory, str(directory)).items():
        if factor := FACTOR.match(name):
            found.setdefault(factor["module"], {})[factor["factor"]] = shape
    for module, factors in found.items():
        if module not in sizes and all_named and "experts" not in module:
            raise AdapterError(f"{directory} does not fit {model}: it adapts {module}, which the model lacks")
        layer, adapted = sizes.get(module), (factors["A"][1], factors["B"][0])
        if layer is not None and layer != adapted:
            raise AdapterError(
                f"{directory} does not fit {model}: at {module} it maps {adapted[0]:,} values to {adapted[1]:,}, and "
                f"that model {layer[0]:,} to {layer[1]:,}"
            )


def unadapted(directory: Path, settings: Mapping[str, Any], sizes: Mapping[str, tuple[int, int] | None]) -> list[str]:
    """The model's layers that the adapter's settings name by their last part but for which it has no weights: PEFT
    reports such an incomplete file, vLLM does not. Settings that select layers in another way are not checked."""
    named = settings.get("target_modules")
    others = (settings.get("layers_to_transform"), settings.get("exclude_modules"))
    if not isinstance(named, list) or any(other not in (None, []) for other in others):  # layer 0 may be given as 0
        return []
    held = adapted_layers(directory)
    ends = tuple(f".{name}" for name in named)
    return [path for path, size in sizes.items() if size and f".{path}".endswith(ends) and path not in held]


def adapted_layers(directory: Path) -> set[str]:
    """The paths of the layers for which an adapter has weights."""
    return {found["module"] for found in map(FACTOR.match, _shapes(directory, str(directory))) if found}


def rank_and_scale(peft_config: dict[str, Any], module: str) -> tuple[int, float]:
    """(rank, factor before B·A) of a module: α/r, or α/√r with rsLoRA, with the patterns of adapter_config.json.

    Experts are named by their stacked parameters; PEFT nests the adapters of one module's parameters as `base_layer`.
    """
    plain = module.removesuffix(".base_layer")
    names = [plain]
    for parameter in peft_config.get("target_parameters") or ():
        parent, _, leaf = parameter.rpartition(".")
        if plain == parent or plain.endswith("." + parent):
            names.append(f"{plain}.{leaf}")

    def setting(patterns: dict[str, float], default: float) -> float:
        for name in names:
            for pattern, value in patterns.items():
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
        return default

    rank = int(setting(peft_config.get("rank_pattern") or {}, peft_config["r"]))
    alpha = setting(peft_config.get("alpha_pattern") or {}, peft_config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if peft_config.get("use_rslora") else rank)
