"""What every command shares: errors as one line, quiet libraries, no hub where none is needed."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from typing import TYPE_CHECKING

from rich.logging import RichHandler

from evals.suites import find_suite, suite_needs_hub
from rl_engine.config import Config
from rollout import models
from rollout.prompts import problems

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


def explain(error: OSError, paths: str = "model.name, data.path and eval.data_dir") -> str:
    """What the system or the hub client said, and the way out."""
    if error.errno is None:
        hint = f"On a machine without the hub, give {paths} as local paths."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Make space: what was saved before stands, and --resume continues it."
    else:
        hint = "What was saved before stands: --resume continues it."
    return f"{error}\n{hint}"


def stay_offline_if_possible(config: Config) -> None:
    """Where model, data and suites are all on this machine, forbid the libraries to ask the hub at all."""
    suites = [find_suite(name) for name in config.eval.suites]
    if not (
        models.needs_hub(config.model.name)
        or problems.needs_hub(config.data)
        or any(suite_needs_hub(suite, config.eval.data_dir) for suite in suites)
    ):
        os.environ["HF_HUB_OFFLINE"] = "1"


def join_quietly() -> Ranks:
    """Enter the process group."""
    # Read when torch is loaded: vLLM's C++ side would report the memory binding it chose on every start.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    speak_only_of_what_matters()
    from rl_engine.learner.ranks import join_ranks

    return join_ranks()


def speak_only_of_what_matters() -> None:
    """Warnings in our own style, and no progress bars or questions of libraries."""
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about what DeepSpeed calls
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    models.refuse_code_of_models()
