"""A run's configuration, a file of problems or a suite → the prompts on which a divergence is measured."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from evals.suites import find_suite, load_suite
from rollout.config import DataConfig, PromptConfig, SamplingConfig
from rollout.problems import load_problems
from rollout.prompts import Renderer
from rollout.types import Problem, Prompt

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Prompts, and how the base model answers them."""

    prompts: list[Prompt]
    sampling: SamplingConfig

    def describe(self) -> dict[str, Any]:
        return {"count": len(self.prompts), "first": self.prompts[0].text, **self.sampling.model_dump()}


def read_task_prompts(
    source: str,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    samples: int,
    max_tokens: int | None,
    seed: int,
) -> TaskPrompts:
    """`count` prompts drawn by `seed`, since a source may be sorted by subject; all, where there are fewer.

    Raises `ValueError` or `FileNotFoundError` for a source that has no problems.
    """
    own_tokens: int = MAX_TOKENS
    if source.endswith((".yaml", ".yml")):
        problems, prompt, own_tokens = _of_run(Path(source))
    else:
        # As the model itself would be asked; anything else is what a configuration is for.
        prompt = PromptConfig(template="chat" if tokenizer.chat_template else "problem_solution")
        problems = load_suite(find_suite(source), data_dir)
    renderer = Renderer(tokenizer, prompt)
    chosen = random.Random(seed).sample(problems, min(count, len(problems)))
    sampling = SamplingConfig(n=samples, max_tokens=max_tokens or own_tokens, stop=renderer.stop)
    return TaskPrompts(renderer.render_all(chosen), sampling)


def _of_run(path: Path) -> tuple[list[Problem], PromptConfig, int]:
    """The problems that a run trains on, how it asks them, and its longest completion."""
    run = yaml.safe_load(path.read_text())
    missing = [name for name in ("seed", "data", "prompt", "sampling") if not isinstance(run, dict) or name not in run]
    if missing:
        raise ValueError(f"--prompts {path} has no {', '.join(missing)}: give the config.yaml that a run wrote")
    problems = load_problems(DataConfig.model_validate(run["data"]), split="train", seed=run["seed"]).problems
    return (
        problems,
        PromptConfig.model_validate(run["prompt"]),
        SamplingConfig.model_validate(run["sampling"]).max_tokens,
    )
