"""Graded groups → whether grading itself failed so often that the run must stop."""

from __future__ import annotations

from collections.abc import Sequence

from rewards import Verdict
from rewards.config import RewardConfig
from rewards.types import FAILED
from rl_engine.learner.groups import GradedGroup

MOST_FAILED = 0.1
"""Largest share of a step's completions on which grading may fail. Those completions are left out of the loss; beyond
this share, what remains no longer represents the task."""


class GradingFailedError(RuntimeError):
    """The grader or a reward function does not work; the message ends with the first traceback."""


def grading_failure(rewards: RewardConfig, step: int, groups: Sequence[GradedGroup]) -> str | None:
    """Return a message if grading failed on more than `MOST_FAILED` of the completions, otherwise None.

    A user's reward function has failed if it raised or timed out. In the first step, and in the evaluation before it, a
    single exception in a reward function stops the run, because it would come back in every step.
    """
    results = [result for group in groups for result in group.results]
    counted = FAILED if rewards.function is not None else {Verdict.ERROR}
    failed = [result for result in results if result.verdict in counted]
    errors = [result for result in failed if result.verdict is Verdict.ERROR]
    at_once = bool(errors) and rewards.function is not None and step <= 1
    if not at_once and len(failed) <= MOST_FAILED * len(results):
        return None
    limit = "one in the first step" if at_once else f"more than {MOST_FAILED:.0%}"
    where = f" with rewards.function {rewards.function}" if rewards.function is not None else ""
    return (
        f"grading failed on {len(failed):,} of {len(results):,} completions{where}, and {limit} stops a run. "
        f"The first: {(errors or failed)[0].detail}"
    )
