"""What the commands of rl_engine share: a hint with an error of the system, no hub where none is needed, the ranks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from evals.command import quiet_libraries, quiet_torch
from evals.suites import find_suite, suite_needs_hub
from rl_engine.config import Config
from rl_engine.config.sft import SftConfig
from rl_engine.run.output import can_be_resumed
from rollout import models
from rollout.prompts import problems

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


def contradiction(*, resume: bool, overwrite: bool, keep_old: bool) -> str | None:
    """What cannot be asked for together, for people."""
    if resume and overwrite:
        return "--resume continues the run in output_dir and --overwrite replaces it: give one of them"
    if keep_old and not overwrite:
        return "--keep-old keeps the run that --overwrite replaces: give --overwrite too"
    return None


def what_is_saved(config: Config | SftConfig | None) -> str:
    """What a run that ended before its time has left, for people."""
    if config is None:
        return ""
    if can_be_resumed(config):
        return "What was saved before stands: --resume continues it."
    return "No checkpoint of this run was saved."


def with_hint(
    error: OSError, config: Config | SftConfig | None, paths: str = "model.name, data.path and eval.data_dir"
) -> str:
    """What the system or the hub client said, and the way out. `paths` names the keys that may hold local paths."""
    if error.errno is None:
        hint = f"On a machine without the hub, give {paths} as local paths."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"Make space. {what_is_saved(config)}"
    else:
        hint = what_is_saved(config)
    return f"{error}\n{hint}".rstrip()


def stay_offline_if_possible(config: Config) -> None:
    """Forbid the libraries to ask the hub where model, data and suites are all on this machine."""
    suites = [find_suite(name) for name in config.eval.suites]
    if not (
        models.needs_hub(config.model.name)
        or problems.needs_hub(config.data)
        or any(suite_needs_hub(suite, config.eval.data_dir) for suite in suites)
    ):
        os.environ["HF_HUB_OFFLINE"] = "1"


def join_ranks_quietly() -> Ranks:
    """Enter the process group. The first thing to load torch."""
    quiet_torch()
    quiet_libraries()
    from rl_engine.learner.ranks import join_ranks

    return join_ranks()
