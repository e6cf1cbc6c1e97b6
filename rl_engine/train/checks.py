"""Configuration of a run → the errors that can be found without torch, and what it needs from the hub."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import PathFinder
from pathlib import Path

from evals.suites import check_suite_files, find_suite, suite_hub_items
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.run.checks import check_parts, is_installed
from rollout import models
from rollout.hub import HubItem
from rollout.pool.environment import check_address
from rollout.prompts import problems


def check_quickly(config: Config, *, resume: bool = False) -> None:
    """Raises `ValueError` or `FileNotFoundError` for errors that can be found without loading anything."""
    check_parts(config, resume=resume)
    check_reward(config)
    check_pool(config)
    problems.check_source(config.data)
    for name in config.eval.suites:
        check_suite_files(find_suite(name), config.eval.data_dir, "eval.data_dir")


def wanted_of_hub(config: Config) -> list[HubItem]:
    """Everything a run reads from the hub: model, problems, suites."""
    items = [*models.hub_items(config.model), *problems.hub_items(config.data)]
    for name in config.eval.suites:
        items += suite_hub_items(find_suite(name), config.eval.data_dir, "eval.suites", "give eval.data_dir=DIR")
    return items


def check_pool(config: Config) -> None:
    """Check that Ray is installed, and that the cluster to join exists. Only the first rank drives the workers."""
    if config.rollout.placement != "ray":
        return
    if not is_installed("ray"):
        raise ConfigError("rollout.placement is ray, and Ray is not installed: pip install ray")
    if config.rollout.address is not None and os.environ.get("RANK", "0") == "0":
        check_address(config.rollout.address)


def check_reward(config: Config) -> None:
    """Check that the module of the reward function exists, without importing it: only the grading processes do that."""
    function = config.rewards.function
    if function is None or function.startswith("trl:"):
        return
    module = function.partition(":")[0]
    if not is_there(module):
        raise ConfigError(
            f"rewards.function is {function!r}: there is no module {module!r} in this directory or on Python's path"
        )


def is_there(module: str) -> bool:
    """Whether Python would find a module; its parent packages are not imported."""
    top, *parts = module.split(".")
    try:
        # The grading processes also have the command's working directory on their path.
        found = importlib.util.find_spec(top) or PathFinder.find_spec(top, [str(Path.cwd())])
    except ValueError:  # an empty name
        return False
    name = top
    for part in parts:
        if found is None or found.submodule_search_locations is None:
            return False
        name = f"{name}.{part}"
        found = PathFinder.find_spec(name, found.submodule_search_locations)
    return found is not None
