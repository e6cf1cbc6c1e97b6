"""adapter_config.json and the names of its tensors → rank and scale of each module, by PEFT's rules."""

from __future__ import annotations

import math
import re
from typing import Any

FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?$")


def rank_and_scale(peft_config: dict[str, Any], module: str) -> tuple[int, float]:
    """(rank, factor before B·A) of a module: α/r, or α/√r with rsLoRA, with the patterns of adapter_config.json.

    Experts are named by the stacked parameters they are; PEFT nests the adapters of one module's, as `base_layer`.
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
