"""Configuration of a run → the errors that can be found without torch, and what it needs from the hub."""

from __future__ import annotations

import os

from evals.suites import check_suite_files, find_suite, suite_hub_items
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.run.checks import check_parts, is_installed
from rl_engine.run.origin.inputs import find_module
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
    check_suites(config)


def check_suites(config: Config) -> None:
    """Check that all suites exist and that no two share a name, under which their scores would be confused."""
    seen: dict[str, str] = {}
    for given in config.eval.suites:
        suite = find_suite(given, "eval.suites")
        if suite.name in seen:
            raise ConfigError(
                f"eval.suites has {seen[suite.name]} and {given}, whose scores would both be called {suite.name}: "
                "leave one out, or rename its file"
            )
        seen[suite.name] = given
        check_suite_files(suite, config.eval.data_dir, "eval.data_dir")


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
    if find_module(module) is None:
        raise ConfigError(
            f"rewards.function is {function!r}: there is no module {module!r} in this directory or on Python's path"
        )
