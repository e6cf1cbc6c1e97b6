"""A supervised run ↔ what it takes to resume it: what is trained, and Adam's moments."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rl_engine.checkpoint import Checkpoints, RunState
from rl_engine.config_file import ConfigError
from rl_engine.records import METRICS
from rl_engine.sft_config import SftConfig
from rl_engine.sft_model import Trained

MOMENTS = ("exp_avg", "exp_avg_sq")
# What may change between a run and its resumption: nothing that the numbers depend on.
FREE_TO_CHANGE = ("output_dir", "log", "checkpoint", "eval")


def _decisive(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in FREE_TO_CHANGE}


def config_hash(config: SftConfig) -> str:
    """Digest of everything the numbers of a run depend on."""
    return hashlib.sha256(json.dumps(_decisive(config.model_dump(mode="json")), sort_keys=True).encode()).hexdigest()


def check_output(config: SftConfig, *, resume: bool, overwrite: bool) -> None:
    """Make way for the run. Raises `ConfigError` rather than write over another, or resume one that is not this one."""
    run = Path(config.output_dir)
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is not a directory")
    if overwrite and (run / "config.yaml").is_file():
        shutil.rmtree(run)
    exists = (run / METRICS).exists() or (run / "checkpoints").exists()
    if exists and not resume:
        raise ConfigError(
            f"output_dir: {run} holds a run already; --resume continues it, --overwrite replaces it, "
            "or give another output_dir"
        )
    if resume and (run / "config.yaml").is_file():
        old, new = yaml.safe_load((run / "config.yaml").read_text()), config.model_dump(mode="json")
        changed = [key for key in _decisive(new) if old.get(key) != new[key]]
        if changed:
            raise ConfigError(f"{run} cannot be resumed with another configuration: {', '.join(changed)} changed")


def save(
    config: SftConfig, trained: Trained, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, step: int
) -> None:
    """A checkpoint after a step."""
    tensors = {f"value.{name}": value for name, value in trained.values().items()}
    for name, parameter in trained.parameters.items():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().clone()
    position = step * config.train.batch_size
    checkpoints.save(RunState(step=step, position=position, version=0, config_hash=config_hash(config)), tensors)


def restore(config: SftConfig, trained: Trained, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints) -> int:
    """Put back the newest checkpoint; the steps it has done, 0 where there is none."""
    found = checkpoints.newest()
    if found is None:
        return 0
    state, tensors = found
    if state.config_hash != config_hash(config):
        raise ConfigError(f"the checkpoint after step {state.step} was made by another configuration")
    for name, parameter in trained.parameters.items():
        _put(parameter, tensors[f"value.{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            **{moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS},
        }
    return state.step


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
