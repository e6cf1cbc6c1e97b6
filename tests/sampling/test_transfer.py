"""The bytes of an adapter version and of an answer, compared with files and pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rl_engine.learner.learner import Learner
from rl_engine.sampling.transfer import TOKEN_BYTES, transfer_of
from rl_engine.train.__main__ import app
from rollout.pool.space import FreeSpace
from rollout.types import Completion

POOL = ("rollout.placement=ray", "lora.rank=8")


@pytest.mark.parametrize("start", ["default", "pissa_niter_16", "tiny"])
def test_a_version_is_as_large_as_its_file(
    make_config: Any, make_learner: Callable[..., Learner], tmp_path: Path, start: str
) -> None:
    sent = transfer_of(make_config(*POOL, f"lora.init={start}", "rollout.max_staleness=2"))
    learner = make_learner("lora.rank=8", f"lora.init={start}")
    learner.trainable.write(tmp_path, learner.weights())
    file = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert sent.version_bytes <= file < sent.version_bytes * 1.1
    assert sent.versions == 4


def test_a_whole_model_is_as_large_as_its_file(
    make_config: Any, make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    sent = transfer_of(make_config(POOL[0], "method=full"))
    learner = make_learner("method=full")
    learner.trainable.write(tmp_path, learner.weights())
    file = (tmp_path / "model.safetensors").stat().st_size
    assert sent.version_bytes <= file < sent.version_bytes * 1.01
    assert sent.whole_models
    half = transfer_of(make_config(POOL[0], "method=full", "model.dtype=bfloat16"))
    assert 2 * half.version_bytes == sent.version_bytes


def test_an_answer_is_counted_at_its_longest(make_config: Any) -> None:
    config = make_config(*POOL, "train.problems_per_step=8", "sampling.n=5", "sampling.max_tokens=100")
    assert transfer_of(config).answer_bytes == max(4 * 5 * 100, 16 * 100) * TOKEN_BYTES
    tokens = 2000
    answer = Completion(
        text="word" * tokens,
        token_ids=tuple(range(100_000, 100_000 + tokens)),
        logprobs=tuple(-1 / (1 + place) for place in range(tokens)),
        finish_reason="stop",
        adapter="policy-v000001",
    )
    assert 0.8 * TOKEN_BYTES < len(pickle.dumps(answer)) / tokens < TOKEN_BYTES


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_has_no_room_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]
) -> None:
    monkeypatch.setattr(FreeSpace, "here", classmethod(lambda cls: cls(shared=0, scratch=10**5)))
    output = tmp_path / "run"
    found = CliRunner(env={"HF_HUB_OFFLINE": "1"}).invoke(
        app, ["--config", "quickstart.yaml", *options, *POOL, f"output_dir={output}"]
    )
    assert found.exit_code == 2
    assert "rollout.workers is 2, and each writes down 2 versions" in found.output
    assert not output.exists()
