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

import runpy
from pathlib import Path

_SHADOWING = Path(__file__).parents[1] / "datafiles" / "shadowing.py"
runpy.run_path(str(_SHADOWING))["refuse_shadowing"]("datafiles")

# Only now: they import `datafiles`.
from rewards.config import RewardConfig  # noqa: E402
from rewards.grader import Grader  # noqa: E402
from rewards.types import GradeItem, GradeResult, Verdict  # noqa: E402

__all__ = ["GradeItem", "GradeResult", "Grader", "RewardConfig", "Verdict"]
