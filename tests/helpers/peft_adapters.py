"""Adapters in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_peft(directory: Path, *, layers: int = 4, hidden: int = 192, **settings: Any) -> None:
    """Write an adapter of the embedded model's shape in PEFT's format."""
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.weight": torch.zeros(shape)
        for layer in range(layers)
        for matrix, shape in (("A", (2, hidden)), ("B", (192, 2)))
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], **settings}
    (directory / "adapter_config.json").write_text(json.dumps(config))
