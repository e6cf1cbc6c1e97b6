"""Configuration of a supervised run → the errors that can be found without torch, and what it needs from the hub."""

from __future__ import annotations

import os

from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.run.checks import check_parts
from rl_engine.sft import conversations
from rollout import models
from rollout.hub import HubItem


def check_quickly(config: SftConfig, *, resume: bool = False) -> None:
    """Raises `ValueError` or `FileNotFoundError` for errors that can be found without loading anything."""
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"supervised training runs in one process, and WORLD_SIZE is {count}: run the command without a launcher"
        )
    check_parts(config, resume=resume)
    conversations.check_source(config.data)


def wanted_of_hub(config: SftConfig) -> list[HubItem]:
    """Everything a run reads from the hub: model and conversations."""
    return [*models.hub_items(config.model), *conversations.hub_items(config.data)]
