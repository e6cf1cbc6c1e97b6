"""Configuration → one trial call of its reward function on its first problem, before anything is loaded."""

from __future__ import annotations

from rewards import GradeItem
from rewards.trial import try_function
from rl_engine.config import Config
from rollout.prompts.problems import HUB, MIX, first_problem
from rollout.types import Problem

# Stands in for the first problem of a hub dataset, which is not read until the model's tokenizer is there.
SOME_PROBLEM = Problem(id="", text="What is 1 + 1?", answer="2")


def try_reward(config: Config) -> None:
    """Raises `RewardFunctionError` if `rewards.function` does not work, `ValueError` or `FileNotFoundError` for a
    problem file that cannot be read."""
    if config.rewards.function is None:
        return
    problem = first_problem(config.data, need_answer=config.rewards.correct_weight > 0)
    if problem is None:
        if config.data.source in (HUB, MIX):
            # The columns of a hub dataset are known only once it has been read.
            return
        problem = SOME_PROBLEM
    text, answer = problem.text, problem.answer
    completion = f"So the answer is \\boxed{{{answer}}}."
    item = GradeItem(
        completion=completion,
        reference=answer,
        tokens=min(len(completion), config.sampling.max_tokens),
        max_tokens=config.sampling.max_tokens,
        problem=text,
        extra=problem.extra,
    )
    try_function(config.rewards, item)
