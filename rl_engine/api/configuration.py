"""A YAML file and settings from Python → the configuration of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_engine.config import Config
from rl_engine.config.file import read_config

Settings = Sequence[str] | Mapping[str, Any]


def load_config(name: str | Path, settings: Settings = ()) -> Config:
    """Load the configuration of a run from a YAML file, or a shipped one by name; `settings` override the file's.

    Give settings as on the command line, `["train.steps=10", "lora.rank=8"]`, or as a mapping,
    `{"train.steps": 10, "lora": {"rank": 8}}`. Without `output_dir` the run goes to `runs/<file name>`.
    Raises `ConfigError`, a `ValueError`, that names every invalid key, its value and what is allowed.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"load_config takes a file, or the name of a shipped one, and then settings, not {name!r:.80}")
    if isinstance(settings, str):
        settings = [settings]
    if isinstance(settings, Mapping):
        settings = [f"{key}={_as_yaml(value)}" for key, value in settings.items()]
    if not all(isinstance(one, str) for one in settings):
        raise TypeError(f"load_config takes settings as a mapping, or as a list of KEY=VALUE, not {settings!r:.80}")
    return read_config(Config, str(name), settings, place="settings")


def _as_yaml(value: Any) -> str:
    """The value as JSON, which is valid YAML and quotes strings, so that they stay strings."""
    return json.dumps(value, default=str)
