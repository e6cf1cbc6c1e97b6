"""Families that vLLM serves through transformers' own classes, trained in the process that serves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import forked
from tests.helpers.families import write_tiny

pytestmark = pytest.mark.drill

QUICK = (
    "data.arithmetic.terms=[2,3]",
    "sampling.max_tokens=8",
    "sampling.n=2",
    "train.steps=2",
    "train.problems_per_step=4",
    "eval.limit=4",
    "rollout.kv_cache_gib=0.1",
)


@pytest.mark.parametrize("kind", ["phi", "olmo2", "smollm3", "starcoder2"])
def test_it_trains_with_canary_and_gap_in_their_limits(kind: str, tmp_path: Path) -> None:
    write_tiny(kind, tmp_path / kind)
    code, output = forked.train(tmp_path, f"model.name={tmp_path / kind}", *QUICK, environment={"OMP_NUM_THREADS": "1"})
    assert code == 0, output
