"""The command's work with the real sampler: several adapters in one engine, none affected by the others."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from evals.evaluate import evaluate
from evals.launch.group import Launch
from evals.options import EvalOptions
from rewards import Grader
from rewards.records import read_rows
from rollout.adapters import AdapterStore
from rollout.engine import EngineSettings
from rollout.types import AdapterRef
from tests.helpers import forked_commands
from tests.helpers.ports import meeting_place

pytestmark = pytest.mark.engine


class Borrowed:
    """The session's engine, which is not closed; instead, the loaded adapters are unloaded."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.loaded = inner, list[AdapterRef]()
        self.begin, self.advance = inner.begin, inner.advance

    def start(self, settings: EngineSettings) -> Borrowed:
        assert (settings.model, settings.dtype) == (self.inner.settings.model, self.inner.settings.dtype)
        assert settings.lora_rank <= self.inner.settings.lora_rank
        assert settings.max_model_len <= self.inner.settings.max_model_len
        return self

    def load_adapter(self, ref: AdapterRef) -> None:
        self.inner.load_adapter(ref)
        self.loaded.append(ref)

    def close(self) -> None:
        for ref in self.loaded:
            self.inner.unload_adapter(ref)


def write_random(directory: Path, rank: int) -> None:
    """A random adapter on the embedded model's down projections that changes the model's output."""
    draw = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in range(4):
        stem = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, 512, generator=draw) / 512**0.5
        tensors[f"{stem}.lora_B.weight"] = torch.randn(192, rank, generator=draw) / 4
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["down_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_of_several_ranks_take_turns_in_one_engine(
    vllm_engine: Any, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published adapter of rank 3 and a plain PEFT adapter of rank 1 score the same side by side as alone."""
    monkeypatch.setattr("evals.evaluate.Grader.from_config", lambda *_: contextlib.nullcontext(grader))
    store = AdapterStore(tmp_path / "adapters", name="side")
    published = store.publish(1, lambda directory: write_random(directory, 3), {"rank": 3, "base_model": "embedded"})
    write_random(tmp_path / "plain", 1)
    both = (str(published.path), str(tmp_path / "plain"))
    options = EvalOptions(
        model="embedded",
        suites=("held_out",),
        adapters=both,
        limit=6,
        samples=2,
        max_tokens=24,
        batch=6,
        output=tmp_path / "a.json",
    )

    def rows(options: EvalOptions) -> dict[str, Any]:
        evaluate(options, Launch(0, 1), Console(file=io.StringIO()), Borrowed(vllm_engine).start)
        (suite,) = json.loads(options.output.read_text())["suites"]
        return {row.pop("adapter"): {**row, "tokens_per_s": None} for row in suite["rows"]}

    together = rows(options)
    assert list(together) == ["base", "side-v000001", "plain"]
    assert together["side-v000001"]["adapter_sha256"] == published.sha256
    alone = rows(replace(options, adapters=both[1:], output=tmp_path / "b.json"))
    assert alone["plain"] == together["plain"]
    assert alone["base"] == together["base"]
    lengths = {row["tokens_mean"] for row in together.values()}
    assert len(lengths) == 3, "adapters that change nothing show nothing"


def test_batches_side_by_side_say_what_they_say_alone(
    vllm_engine: Any, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The completions match up to rounding, as on a GPU."""
    monkeypatch.setattr("evals.evaluate.Grader.from_config", lambda *_: contextlib.nullcontext(grader))
    work: dict[str, Any] = {"suites": ("held_out",), "limit": 9, "samples": 2, "max_tokens": 24, "batch": 6}
    asked = EvalOptions(model="embedded", records=True, output=tmp_path, **work)

    def said(name: str) -> list[tuple[str, int, str]]:
        options = replace(asked, output=tmp_path / f"{name}.json")
        evaluate(options, Launch(0, 1), Console(file=io.StringIO()), Borrowed(vllm_engine).start)
        rows = read_rows(tmp_path / f"{name}.samples.jsonl.gz", required=("completion",))
        return [(row["problem_id"], row["sample"], row["completion"]) for row in rows]

    alone = said("alone")
    monkeypatch.setattr("evals.evaluate.completions_at_once", lambda _: 10)
    beside = said("beside")
    assert len(beside) == 18
    # A token differs only where two were nearly equally likely.
    assert sum(one != other for one, other in zip(alone, beside, strict=True)) <= 1


def test_fewer_batches_than_ranks_are_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one batch: neither waits for the other's engine."""
    if torch.cuda.device_count() == 1:
        pytest.skip("two processes with an engine each take two cards")
    monkeypatch.chdir(tmp_path)
    place = meeting_place(2)
    what = ["--model", "embedded", "--suite", "held_out", "--limit", "3", "--max-tokens", "8", "--samples", "1"]
    what += ["--kv-cache-gib", "0.1", "--workers", "1", "--output", "out.json"]
    ranks = [
        forked_commands.start("evals", what, tmp_path / f"{rank}.log", {"RANK": rank, "LOCAL_RANK": rank, **place})
        for rank in ("0", "1")
    ]
    try:
        codes = [rank.wait(400) for rank in ranks]
    finally:
        for rank in ranks:
            rank.terminate()
    assert codes == [0, 0], [log.read_text() for log in sorted(tmp_path.glob("*.log"))]
    (suite,) = json.loads((tmp_path / "out.json").read_text())["suites"]
    assert [row["problems"] for row in suite["rows"]] == [3]
