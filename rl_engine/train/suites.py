"""`eval.suites` of a run → rendered prompts, and warnings about rows and overlap with the training problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evals.contamination import contamination
from evals.suites import GENERATOR, Suite, find_suite, generated_by, load_suite
from rl_engine.config import Config
from rl_engine.sampling.data import TrainingData
from rollout.prompts.problems import turns_left_out
from rollout.prompts.renderer import Renderer
from rollout.types import Prompt


def load_suites(
    config: Config, renderer: Renderer, columns: Sequence[str] = ()
) -> tuple[list[tuple[Suite, list[Prompt]]], list[str]]:
    """Load the run's suites, with warnings about rows that could not be used.

    `columns`: the columns that the training data provides to a reward function; they are None where a suite lacks them.
    """
    suites, notes = [], []
    for name in config.eval.suites:
        suite = find_suite(name)
        loaded = load_suite(
            suite,
            config.eval.data_dir,
            config.eval.limit,
            generated_by(config.data),
            columns=config.data.columns,
            data_dir_key="eval.data_dir",
            column_option="data.columns.{role}={name}",
            with_extra=bool(columns),
        )
        problems = [replace(one, extra={name: one.extra.get(name) for name in columns}) for one in loaded.problems]
        suites.append((suite, renderer.render_all(problems)))
        found = [*loaded.dropped.lines(" rows"), *turns_left_out(problems)]
        notes += [f"warning: suite {suite.name}: {note}" for note in found]
    return suites, notes


def overlap_notes(data: TrainingData, suites: list[tuple[Suite, list[Prompt]]]) -> list[str]:
    """Warnings about training problems that also occur in a suite. Generated suites are disjoint by construction."""
    texts = {
        suite.name: [prompt.problem for prompt in prompts] for suite, prompts in suites if suite.source != GENERATOR
    }
    found = contamination([prompt.problem for prompt in data.prompts], texts)
    return [f"warning: {one.describe()}" for one in found if one]
