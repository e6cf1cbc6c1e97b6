"""Completion and reference → verdict and reward: the verifier that decides what the policy is paid for.

    from rewards import Grader
    with Grader(workers=2, timeout_s=5.0) as grader:
        results = grader.grade([(completion, reference), …])  # .verdict, .reward, .extracted

From the ground up, nothing importing what stands above it:

    types, config                   what is asked, what is answered, and what a run may set
    extraction/                     completion → its final answer as text
    reading/                        answer text → what kind of answer it is
    equality/                       two answers as read → equal or not
    judge, function                 one completion and its reference → a judgement; a user's own function
    workers/                        requests → replies, by processes that judge within limits and can be killed
    shaping, grader                 what is added to the reward, and the public face
    check, audit                    the commands, with records, overlap and second_opinion beside them

Importing this package is cheap and loads no mathematics: sympy and math-verify live in worker processes
only, where they can be limited and killed. What counts as correct is written down in docs/rewards.md.
"""

from rewards.config import RewardConfig
from rewards.grader import Grader
from rewards.types import GradeItem, GradeResult, Verdict

__all__ = ["GradeItem", "GradeResult", "Grader", "RewardConfig", "Verdict"]
