"""A run's reward function → one trial call under the run's limits: it works, or an error says why not.

Without the trial, a function that cannot be imported, requires unknown arguments or raises would show only after
minutes of loading, as a verdict `error` for every completion.
"""

from __future__ import annotations

from rewards.config import RewardConfig
from rewards.grader import Grader
from rewards.types import FAILED, GradeItem, Verdict
from rewards.workers.processes import WorkersFailed


class RewardFunctionError(ValueError):
    """A reward function does not work. The message ends with the last lines of its traceback."""


def try_function(config: RewardConfig, item: GradeItem) -> None:
    """Call `rewards.function` on one item in a grading process.

    Raises `RewardFunctionError` if it cannot be imported, raises, takes too long, or returns neither a finite number
    nor None.
    """
    if config.function is None:
        return
    try:
        with Grader.from_config(config.model_copy(update={"workers": 1})) as grader:
            (result,) = grader.grade([item])
    except WorkersFailed as error:
        # The module ends the process while it is imported, so there is no traceback.
        raise RewardFunctionError(
            f"rewards.function: importing {config.function} ends the grading process: {error}"
        ) from error
    if result.verdict is Verdict.TIMEOUT:
        raise RewardFunctionError(
            f"rewards.function: a trial call of {config.function} took more than rewards.timeout_s "
            f"({config.timeout_s:g} s)"
        )
    if result.verdict in FAILED:
        raise RewardFunctionError(f"rewards.function: a trial call of {config.function} failed: {result.detail}")
