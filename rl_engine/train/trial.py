"""Configuration → its reward function called once, on the first of its own problems, before anything is loaded."""

from __future__ import annotations

from rewards import GradeItem
from rewards.trial import try_function
from rl_engine.config import Config
from rollout.prompts.problems import HUB, MIX, first_problem
from rollout.types import Problem

# Of a dataset on the hub, which is not read before the model's tokenizer is there.
SOME_PROBLEM = Problem(id="", text="What is 1 + 1?", answer="2")


def try_reward(config: Config) -> None:
    """Raises `RewardFunctionError` where `rewards.function` does not work, `ValueError` or `FileNotFoundError` for a
    problem file that cannot be read."""
    if config.rewards.function is None:
        return
    problem = first_problem(config.data, need_answer=config.rewards.correct_weight > 0)
    if problem is None:
        if config.data.source in (HUB, MIX):
            # What columns such a set has is known only when it is read.
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
