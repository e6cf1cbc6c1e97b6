"""Run directories, written instantly by the code that writes those of real runs, for tests of code that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from evals.scoring.kept import keep_answers
from evals.scoring.outcomes import outcome_of
from evals.scoring.report import EvalReport
from rewards import Verdict
from rl_engine.config import Config, load_config
from rl_engine.learner.groups import GradedGroup
from rl_engine.plan.card import settle_precision
from rl_engine.policy.base_model import load_causal_lm
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.run.records import Records
from rollout.adapters import AdapterStore
from tests.helpers.builders import completion, graded_group, prompt, result

LAST = 3
SCORES = {0: (0.25, (0.2, 0.31)), LAST: (0.75, (0.69, 0.8))}
CURVES = b"\x89PNG\r\n\x1a\n a picture of three steps \0"
THE_REST = {"throughput/tokens_per_s": 500.0}
Texts = Mapping[str, Sequence[tuple[str, Verdict]]]
"""Problem id → its completions and their verdicts."""


def group_of(problem_id: str, answers: Sequence[tuple[str, Verdict]], version: int) -> GradedGroup:
    """A graded group with one token per character of an answer, whose last character is the extracted answer."""
    question = f"What is {problem_id}?"
    return graded_group(
        prompt(f"Q: {question}\n", id=problem_id, problem=question, answer="4", tokens=(1, 2, 3)),
        [
            (
                completion(text, tokens=len(text), logprob=-0.5, adapter=f"policy-v{version:06d}"),
                result(verdict, extracted=text[-1:] or None),
            )
            for text, verdict in answers
        ],
    )


def start_run(run: Path, *overrides: str) -> Records:
    """Create a run's directory as it is before the first step."""
    settings = (f"output_dir={run}", "log.tensorboard=false", *overrides)
    records = Records(run, settle_precision(load_config("quickstart.yaml", settings), "cpu"))
    records.open(-1)
    return records


def record_step(records: Records, step: int, texts: Texts, metrics: Mapping[str, float]) -> None:
    """Record the rollouts and the metrics of one step, after which version `step` samples."""
    groups = [group_of(problem_id, answers, step - 1) for problem_id, answers in texts.items()]
    records.rollouts(step, groups, [[0.5] * len(group.results) for group in groups])
    records.metrics({"step": step, "adapter/version": step, **metrics})


def publish(run: Path, version: int) -> None:
    """Publish a version with dummy weights."""

    def write(directory: Path) -> None:
        (directory / "weights").write_text(str(version))

    fields = {"kind": "lora", "rank": 1, "base_model": "tiny", "weights": "weights"}
    AdapterStore(run / "adapters").publish(version, write, fields)


def evaluated(run: Path, suite: str, version: int, avg: float) -> dict[str, float]:
    """Write a report to evals/ with only what every version of the format has. Returns the metrics of its step."""
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


def answered(run: Path, suite: str, version: int, texts: Texts) -> None:
    """Write the answers of an evaluation as a run does."""
    groups = [group_of(problem_id, answers, version) for problem_id, answers in texts.items()]
    outcomes = [outcome_of(group.rollout, group.results) for group in groups]
    keep_answers(run / "evals", suite, f"policy-v{version:06d}", outcomes)


def trained_run(run: Path, *overrides: str) -> LoraPolicy:
    """Write a run that trained an adapter of the embedded model: two versions, their reports, a few metrics.

    Returns the model of its last version, whose update is far from zero.
    """
    overrides = ("train.steps=5", "learner.layout=padded", "eval.max_tokens=24", *overrides)
    records = start_run(run, *overrides)
    config = records.config
    assert isinstance(config, Config)
    trained = LoraPolicy(config, load_causal_lm(config, torch.device("cpu")))
    store = AdapterStore(run / "adapters")
    generator = torch.Generator().manual_seed(1)
    for version in (0, LAST):
        for name, parameter in trained.parameters.items():
            if version and "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.02, generator=generator)
        tensors = {name: parameter.detach().clone() for name, parameter in trained.parameters.items()}
        fields = {
            "parent": None,
            **trained.manifest_entries(),
            "base_model": config.model.name,
            "config_hash": "0" * 64,
        }
        store.publish(version, partial(trained.write, tensors=tensors), fields)
    for step in range(LAST + 1):
        measured = {"reward/mean": 0.5, "time/step_s": 2.0, "policy/kl_base": 0.01 * step, **THE_REST} if step else {}
        records.metrics({"step": step, "adapter/version": step, **measured})
    for version, (avg, interval) in SCORES.items():
        report(f"policy-v{version:06d}", avg, interval).write(run / "evals")
    (run / "curves.png").write_bytes(CURVES)
    (run / "report.html").write_text(f"<p>{run}/metrics.jsonl of {Path.cwd()}, see https://example.org/root</p>")
    return trained


def report(adapter: str, avg: float, interval: tuple[float, float], suite: str = "held_out") -> EvalReport:
    return EvalReport(
        suite=suite,
        suite_version=1,
        data_sha256="0" * 64,
        adapter=adapter,
        adapter_sha256=None,
        problems=200,
        samples=1,
        avg=avg,
        interval=interval,
        pass_at={},
        maj_at={},
        tokens_mean=30 * avg,
        tokens_mean_correct=None,
        tokens_mean_wrong=None,
        truncated_frac=0.0,
        verdicts={},
        by_level={},
        by_subject={},
        tokens_per_s=None,
        temperature=0.0,
        top_p=1.0,
        max_tokens=72,
    )
