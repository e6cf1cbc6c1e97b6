"""Completion and reference → verdict and reward: the verifier that decides what the policy is paid for.

    from rewards import Grader
    with Grader(workers=2, timeout_s=5.0) as grader:
        results = grader.grade([(completion, reference), …])  # .verdict, .reward, .extracted

From the bottom up; nothing imports from a line below its own:

    types, config                   a grader's input, its output, and what a run can set
    extraction/                     completion → its final answer as text
    reading/                        answer text → what kind of answer it is
    equality/                       two answers as read → equal or not
    judge, function                 one completion and its reference → a judgement; a user's own reward function
    workers/                        requests → replies, by processes that judge within limits and can be killed
    shaping, grader                 what is added to the reward, and the public interface
    check, audit                    the commands; records, overlap and second_opinion are their helpers

Importing this package is cheap: sympy and math-verify are loaded only in worker processes, where they can be
limited and killed. What counts as correct is documented in docs/rewards.md.
"""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.config import RewardConfig
    from rewards.grader import Grader
    from rewards.types import GradeItem, GradeResult, Verdict

__all__ = ["GradeItem", "GradeResult", "Grader", "RewardConfig", "Verdict"]

# Loaded on first use, so that a command of this package hears Ctrl-C from its first line on.
_HOMES = {
    "GradeItem": "rewards.types",
    "GradeResult": "rewards.types",
    "Grader": "rewards.grader",
    "RewardConfig": "rewards.config",
    "Verdict": "rewards.types",
}

_SHADOWING = Path(__file__).parents[1] / "datafiles" / "shadowing.py"
runpy.run_path(str(_SHADOWING))["refuse_shadowing"]("datafiles")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
