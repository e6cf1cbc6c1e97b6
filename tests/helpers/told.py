"""The error message of a configuration, and the value of a key in one."""

from __future__ import annotations

from typing import Any

import pytest

from rl_engine.config import Config, load_config
from rl_engine.config.file import CommandConfig, ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.sweep.config import SweepConfig

SCHEMAS: tuple[type[CommandConfig], ...] = (Config, SftConfig, SweepConfig)


def message(name: str, *overrides: str, schema: type[CommandConfig] = Config) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(schema, name, overrides)
    return str(caught.value)


def value(key: str, *overrides: str) -> Any:
    found: Any = load_config("quickstart.yaml", overrides)
    for part in key.split("."):
        found = getattr(found, part)
    return found
