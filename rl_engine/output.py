"""Configuration → its output directory: free, or of this very run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from evals.ledger import differences
from rl_engine.config import Config
from rl_engine.config_file import ConfigError
from rl_engine.records import METRICS
from rl_engine.sft_config import SftConfig

# What may change between a run and its resumption: nothing that the numbers depend on.
FREE_TO_CHANGE = ("output_dir", "log", "checkpoint", "eval")
FREE_OF_ROLLOUT = ("workers", "address", "start_timeout_s", "piece_timeout_s", "max_restarts")


def config_hash(config: Config | SftConfig) -> str:
    """Digest of everything the numbers of a run depend on."""
    facts = _decisive(config.model_dump(mode="json"), config)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _decisive(facts: dict[str, Any], config: Config | SftConfig) -> dict[str, Any]:
    kept = {key: value for key, value in facts.items() if key not in FREE_TO_CHANGE}
    if isinstance(config, SftConfig):
        return kept  # its order of examples and its rates depend on the number of steps
    rollout = {key: value for key, value in kept["rollout"].items() if key not in FREE_OF_ROLLOUT}
    return {**kept, "rollout": rollout, "train": {**kept["train"], "steps": None}}


def check_output(config: Config | SftConfig, *, resume: bool) -> None:
    """Raises `ConfigError` rather than write over another run, or resume one that is not this one."""
    run = Path(config.output_dir)
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is not a directory")
    exists = (run / METRICS).exists() or (run / "checkpoints").exists()
    if exists and not resume:
        raise ConfigError(
            f"output_dir: {run} holds a run already; --resume continues it, --overwrite replaces it, "
            "or give another output_dir"
        )
    if resume and (run / "config.yaml").is_file():
        old = _decisive(yaml.safe_load((run / "config.yaml").read_text()), config)
        changed = differences(old, _decisive(config.model_dump(mode="json"), config))
        if changed:
            raise ConfigError(f"{run} cannot be resumed with another configuration: {'; '.join(changed)}")
