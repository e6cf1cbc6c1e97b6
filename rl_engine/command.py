"""What the commands of rl_engine share: a hint with an error of the system, the ranks."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from evals.command import quiet_libraries, quiet_torch

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


RESUME_OR_OVERWRITE = "--resume continues the run in output_dir and --overwrite replaces it: give one of them"


def with_hint(error: OSError, run: Path) -> str:
    """What the system said, and the way out: that depends on whether the run has saved anything."""
    saved = any((run / "checkpoints").glob("step*"))
    hints = [
        *(["Make space."] if error.errno in (errno.ENOSPC, errno.EDQUOT) else []),
        *(["What was saved before stands: --resume continues it."] if saved else []),
    ]
    return "\n".join([str(error), *([" ".join(hints)] if hints else [])])


def join_ranks_quietly() -> Ranks:
    """Enter the process group. The first thing to load torch."""
    quiet_torch()
    quiet_libraries()
    from rl_engine.learner.ranks import join_ranks

    return join_ranks()
