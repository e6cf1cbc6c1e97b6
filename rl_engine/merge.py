"""Published adapter → the whole model with it, in one directory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rl_engine.base_model import DTYPES, load_weights
from rl_engine.full import WEIGHTS, write_model
from rollout.adapters import write_manifest, written_aside
from rollout.config import ModelConfig


def merge_adapter(adapter: Path, target: Path, model: ModelConfig, tokenizer: Any) -> float:
    """Write W + (α/r)·B·A, added up in float32 and rounded once to `model.dtype`.

    Returns what rounding lost: ‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖ over all adapted weights. In bfloat16 it is large where
    the update is small beside the weights; served as an adapter, nothing of the update is lost.
    """
    base = load_weights(model, "eager", torch.float32)
    facts = copy.deepcopy(base.config)
    facts.dtype = DTYPES[model.dtype]
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    tensors = {name: parameter.detach() for name, parameter in merged.named_parameters()}
    update = lost = 0.0
    for name, value in tensors.items():
        changed = float((value - before[name]).square().sum())
        if changed:
            update += changed
            lost += float((value.to(facts.dtype).float() - value).square().sum())
    lost_frac = (lost / update) ** 0.5 if update else 0.0
    with written_aside(target) as scratch:
        write_model(scratch, tensors, facts, tokenizer)
        write_manifest(scratch, {"kind": "full", "rank": 0, "weights": WEIGHTS, "rounding_lost_frac": lost_frac})
    return lost_frac
