"""Completion and reference → verdict and reward: the verifier that decides what the policy is paid for.

    from rewards import Grader
    with Grader(workers=2, timeout_s=5.0) as grader:
        results = grader.grade([(completion, reference), …])  # .verdict, .reward, .extracted

Importing this package is cheap and loads no mathematics: sympy and math-verify live in worker processes
only, where they can be limited and killed. What counts as correct is written down in docs/rewards.md.
"""

from rewards.config import RewardConfig
from rewards.grader import Grader
from rewards.types import GradeItem, GradeResult, Verdict

__all__ = ["GradeItem", "GradeResult", "Grader", "RewardConfig", "Verdict"]
