"""Runs that train together, on the real engines: one run equals the plain run, and each of two samples what it samples
alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rl_engine.config.file import CONFIGS
from rl_engine.run.records import read_metrics
from tests.drills.equality import timeless
from tests.helpers import forked

pytestmark = pytest.mark.engine
SETTINGS = (
    "train.steps=2",
    "train.problems_per_step=4",
    "sampling.n=4",
    "eval.every=0",
    "eval.limit=4",
    "log.tensorboard=false",
    "rewards.workers=1",
    "rollout.kv_cache_gib=0.25",
)
TIE = 1e-4
"""In nats: rounding decides the draw between two candidates that are closer than this."""


def run(directory: Path, *arguments: str) -> Path:
    code, output = forked.train(directory, *SETTINGS, *arguments, environment={})
    assert code == 0, output
    return directory / "runs" / "quickstart"


def rows(root: Path, step: int) -> list[dict[str, Any]]:
    with gzip.open(root / "rollouts" / f"step{step:06d}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def kept(root: Path) -> dict[str, Any]:
    patterns = ("adapters/v*/adapter*", "checkpoints/*/*.safetensors", "rollouts/*", "config.yaml")
    return {"metrics": timeless(root)} | {
        str(path.relative_to(root)): path.read_bytes() for pattern in patterns for path in root.glob(pattern)
    }


def test_one_run_is_the_plain_run_and_two_sample_as_alone(tmp_path: Path) -> None:
    for name in ("plain", "one", "two"):
        (tmp_path / name).mkdir()
    plain, one = run(tmp_path / "plain"), run(tmp_path / "one", "--together", "1")
    assert kept(one) == kept(plain)
    other = (CONFIGS / "quickstart.yaml").read_text().replace("rank: 1", "rank: 4, init: pissa") + "seed: 3\n"
    (tmp_path / "two" / "other.yaml").write_text(other)
    concurrent = run(tmp_path / "two", "--config", "other.yaml")
    for ours, alone in zip(rows(concurrent, 1), rows(plain, 1), strict=True):
        assert ours["prompt_ids"] == alone["prompt_ids"]
        assert ours["adapter"] == alone["adapter"] == "policy-v000000"
        same = [a == b for a, b in zip(ours["completion_ids"], alone["completion_ids"], strict=False)]
        assert all(same), (ours["completion"], alone["completion"])
    for name in ("quickstart", "other"):
        gaps = [line["sampler/logprob_gap_max"] for line in read_metrics(concurrent.parent / name)[1:]]
        assert len(gaps) == 2
        assert max(gaps) < TIE
