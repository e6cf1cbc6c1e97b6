"""Families whose models vLLM serves or replaces in ways of their own, trained in the process that serves them."""

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


# The first four are served through transformers' own classes. Weights of whole models are replaced while vLLM runs,
# which packs experts and tied heads for a CPU in ways of its own; GPT-NeoX's head has another name in its files.
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "lora") for kind in ("phi", "olmo2", "smollm3", "starcoder2")),
        *((kind, "full") for kind in ("gemma2", "cohere", "qwen3_moe", "gpt_neox", "apertus")),
    ],
)
def test_it_trains_with_canary_and_gap_in_their_limits(kind: str, method: str, tmp_path: Path) -> None:
    write_tiny(kind, tmp_path / kind)
    settings = (f"model.name={tmp_path / kind}", f"method={method}", "optim.lr=1e-3", *QUICK)
    code, output = forked.train(tmp_path, *settings, environment={"OMP_NUM_THREADS": "1"})
    assert code == 0, output
