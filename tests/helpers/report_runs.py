"""Small run directories, written by the writers of a real run, for what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards import GradeResult, Verdict
from rl_engine.config import load_config
from rl_engine.learner.groups import GradedGroup
from rl_engine.run.records import Records
from rollout.adapters import AdapterStore
from rollout.types import Completion, Problem, Prompt, RolloutGroup

Texts = Mapping[str, Sequence[tuple[str, Verdict]]]
"""Problem id → its completions and their verdicts."""


def graded(problem_id: str, answers: Sequence[tuple[str, Verdict]], version: int) -> GradedGroup:
    problem = Problem(id=problem_id, text=f"What is {problem_id}?", answer="4")
    prompt = Prompt(problem=problem, text=f"Q: {problem.text}\n", token_ids=(1, 2, 3))
    completions = tuple(
        Completion(
            text=text,
            token_ids=tuple(range(len(text))),
            logprobs=(-0.5,) * len(text),
            finish_reason="stop",
            adapter=f"policy-v{version:06d}",
        )
        for text, _ in answers
    )
    results = tuple(
        GradeResult(verdict=verdict, reward=float(verdict is Verdict.CORRECT), extracted=text[-1:] or None)
        for text, verdict in answers
    )
    return GradedGroup(rollout=RolloutGroup(prompt=prompt, completions=completions), results=results)


def start_run(run: Path, *overrides: str) -> Records:
    """A run's directory before its first step."""
    settings = (f"output_dir={run}", "log.tensorboard=false", *overrides)
    records = Records(run, load_config("quickstart.yaml", settings))
    records.open(-1)
    return records


def record_step(records: Records, step: int, texts: Texts, metrics: Mapping[str, float]) -> None:
    """The rollouts and the line of one step, after which version `step` samples."""
    groups = [graded(problem_id, answers, step - 1) for problem_id, answers in texts.items()]
    records.rollouts(step, groups, [[0.5] * len(group.results) for group in groups])
    records.metrics({"step": step, "adapter/version": step, **metrics})


def publish(run: Path, version: int) -> None:
    def write(directory: Path) -> None:
        (directory / "weights").write_text(str(version))

    facts = {"kind": "lora", "rank": 1, "base_model": "tiny", "weights": "weights"}
    AdapterStore(run / "adapters").publish(version, write, facts)


def evaluated(run: Path, suite: str, version: int, avg: float) -> dict[str, float]:
    """A report in evals/ with no more than every version of the format has, and the metrics of its step."""
    report = {
        "suite": suite,
        "suite_version": 1,
        "adapter": f"policy-v{version:06d}",
        "problems": 30,
        "samples": 16,
        "avg": avg,
        "interval": [avg - 0.05, avg + 0.05],
        "tokens_mean": 900.0,
        "temperature": 1.0,
        "max_tokens": 4096,
    }
    (run / "evals").mkdir(exist_ok=True)
    (run / "evals" / f"{suite}-{report['adapter']}.json").write_text(json.dumps(report))
    name = f"eval/{suite}"
    return {f"{name}/avg": avg, f"{name}/low": avg - 0.05, f"{name}/high": avg + 0.05, f"{name}/tokens_mean": 900.0}
