"""Configuration → its reward function called once, on the first of its own problems, before anything is loaded."""

from __future__ import annotations

from rewards import GradeItem
from rewards.trial import try_function
from rl_engine.config import Config
from rollout.prompts.problems import first_problem

# Of a data set of the hub, which is not read before the model's tokenizer is there.
SOME_PROBLEM, SOME_ANSWER = "What is 1 + 1?", "2"


def try_reward(config: Config) -> None:
    """Raises `RewardFunctionError` where `rewards.function` does not work, `ValueError` or `FileNotFoundError` for a
    problem file that cannot be read."""
    if config.rewards.function is None:
        return
    problem = first_problem(config.data)
    text, answer = (problem.text, problem.answer) if problem is not None else (SOME_PROBLEM, SOME_ANSWER)
    completion = f"So the answer is \\boxed{{{answer}}}."
    item = GradeItem(
        completion=completion,
        reference=answer,
        tokens=min(len(completion), config.sampling.max_tokens),
        max_tokens=config.sampling.max_tokens,
        problem=text,
    )
    try_function(config.rewards, item)
