"""A run directory as training leaves it, made in an instant: two published versions, their reports, a few metrics."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from evals.scoring.report import EvalReport
from rl_engine.config import load_config
from rl_engine.policy.lora import LoraPolicy
from rollout.adapters import AdapterStore

LAST = 3
SCORES = {0: (0.25, (0.2, 0.31)), LAST: (0.75, (0.69, 0.8))}
CURVES = b"\x89PNG\r\n\x1a\n a picture of three steps \0"


def make_run(run: Path, *overrides: str) -> LoraPolicy:
    """Write the run of the embedded model; the model of its last version, whose update is far from zero."""
    config = load_config(
        "quickstart.yaml",
        [f"output_dir={run}", "train.steps=5", "learner.layout=padded", "eval.max_tokens=24", *overrides],
    )
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    trainable = LoraPolicy(config, torch.device("cpu"))
    store = AdapterStore(run / "adapters")
    generator = torch.Generator().manual_seed(1)
    for version in (0, LAST):
        for name, parameter in trainable.parameters.items():
            if version and "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.02, generator=generator)
        tensors = {name: parameter.detach().clone() for name, parameter in trainable.parameters.items()}
        facts = {
            "parent": None,
            **trainable.manifest_entries(),
            "base_model": config.model.name,
            "config_hash": "0" * 64,
        }
        store.publish(version, partial(trainable.write, tensors=tensors), facts)
    with (run / "metrics.jsonl").open("w") as lines:
        for step in range(LAST + 1):
            measured = {"reward/mean": 0.5, "time/step_s": 2.0, "policy/kl_base": 0.01 * step} if step else {}
            lines.write(json.dumps({"step": step, "adapter/version": step, **measured}) + "\n")
    for version, (avg, interval) in SCORES.items():
        report(f"policy-v{version:06d}", avg, interval).write(run / "evals")
    (run / "curves.png").write_bytes(CURVES)
    (run / "report.html").write_text(f"<p>{run}/metrics.jsonl of {Path.cwd()}, see https://example.org/root</p>")
    return trainable


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
