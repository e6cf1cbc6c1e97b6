"""What the commands of rl_engine share: a hint with an error of the system, no hub where none is needed, the ranks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

import typer

from evals.command import new_console, quiet_libraries, quiet_torch
from evals.suites import find_suite, suite_needs_hub
from rl_engine.config import Config
from rollout import models
from rollout.prompts import problems
from rollout.stopping import StopRequest

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


RESUME_OR_OVERWRITE = "--resume continues the run in output_dir and --overwrite replaces it: give one of them"


UNTRAINED = "nothing was trained"


def exit_untrained(stop: StopRequest) -> NoReturn:
    """End a command that was asked to stop while it was still loading. One of a launcher's processes says so."""
    console = new_console(quiet=os.environ.get("RANK", "0") != "0")
    console.print(f"stopped as asked before training began: {UNTRAINED}")
    raise typer.Exit(stop.exit_code)


def with_hint(error: OSError, paths: str = "model.name, data.path and eval.data_dir") -> str:
    """What the system or the hub client said, and the way out. `paths` names the keys that may hold local paths."""
    if error.errno is None:
        hint = f"On a machine without the hub, give {paths} as local paths."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Make space: what was saved before stands, and --resume continues it."
    else:
        hint = "What was saved before stands: --resume continues it."
    return f"{error}\n{hint}"


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
