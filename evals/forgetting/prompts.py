"""A run's configuration, a file of problems or a suite → the prompts on which a divergence is measured."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from datafiles.settings import read_settings
from evals.protocol.training_protocol import CONFIG
from evals.suites import find_suite, load_suite
from rollout.config import DataConfig, PromptConfig, SamplingConfig
from rollout.prompts.problems import load_problems
from rollout.prompts.renderer import Renderer
from rollout.types import Problem, Prompt

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TaskPrompts:
    """Prompts, and the sampling of the base model's answers to them."""

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
    """`count` prompts, drawn with `seed` because a source may be sorted by subject; all prompts if there are fewer.

    Raises `ValueError` or `FileNotFoundError` for a source without problems.
    """
    of_run = Path(source) / CONFIG
    if of_run.is_file() or source.endswith((".yaml", ".yml")):
        problems, config, sampling, longest_prompt = _of_run(of_run if of_run.is_file() else Path(source))
    else:
        # The model's usual prompt; any other needs a run's configuration.
        config = PromptConfig(template="chat" if tokenizer.chat_template else "problem_solution")
        problems = load_suite(find_suite(source, "--prompts"), data_dir).problems
        sampling, longest_prompt = SamplingConfig(max_tokens=MAX_TOKENS), sys.maxsize
    renderer = Renderer(tokenizer, config)
    drawn = map(renderer.render, random.Random(seed).sample(problems, len(problems)))
    prompts = list(islice((prompt for prompt in drawn if len(prompt.token_ids) <= longest_prompt), count))
    if not prompts:
        raise ValueError(f"--prompts {source}: every prompt is over data.max_prompt_tokens ({longest_prompt:,})")
    stop = (*renderer.stop, *sampling.stop)
    return TaskPrompts(prompts, SamplingConfig(n=samples, max_tokens=max_tokens or sampling.max_tokens, stop=stop))


def _of_run(path: Path) -> tuple[list[Problem], PromptConfig, SamplingConfig, int]:
    """The problems that a run trains on, its prompt and sampling, and its longest prompt in tokens."""
    run = read_settings(path)
    missing = [name for name in ("seed", "data", "prompt", "sampling") if name not in run]
    if missing:
        raise ValueError(f"--prompts {path} has no {', '.join(missing)}: give the config.yaml that a run wrote")
    data = DataConfig.model_validate(run["data"])
    problems = load_problems(data, split="train", seed=run["seed"], need_answer=False).problems
    prompt, sampling = PromptConfig.model_validate(run["prompt"]), SamplingConfig.model_validate(run["sampling"])
    return problems, prompt, sampling, data.max_prompt_tokens
