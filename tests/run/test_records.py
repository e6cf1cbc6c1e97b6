"""What a run writes, apart from a real run: services, retention, summaries."""

from __future__ import annotations

import gzip
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from rewards import GradeResult, Verdict
from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.groups import GradedGroup
from rl_engine.run.best import best_version
from rl_engine.run.checkpoint import Checkpoints, RunState, restore_rng
from rl_engine.run.console import RunConsole
from rl_engine.run.output import config_hash
from rl_engine.run.records import Records, read_metrics
from rl_engine.train.assemble import pad_id_of
from rollout.types import Completion, Problem, Prompt, RolloutGroup, Segment


class Tracker:
    """Stands in for a tracking service's module."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> None:
        self.calls.append(("init", settings["project"]))

    def log(self, line: dict[str, float], step: int) -> None:
        self.calls.append(("log", step))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_tracking_service_is_told_every_step(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, service, tracker)
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path / 'run'}", f"log.{service}=sums"])
    records = Records(tmp_path / "run", config)
    records.open(-1)
    records.metrics({"step": 1, "reward/mean": 0.5})
    records.close()
    assert tracker.calls == [("init", "sums"), ("log", 1), ("finish", None)]


def test_a_service_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path / 'run'}", "log.wandb=sums"])
    with pytest.raises(ValueError, match="pip install wandb"):
        Records(tmp_path / "run", config).open(-1)


def test_going_on_drops_what_was_written_of_later_steps(tmp_path: Path) -> None:
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"])
    records = Records(tmp_path, config)
    records.open(-1)
    (tmp_path / "rollouts").mkdir()
    for step in range(4):
        records.metrics({"step": step})
        (tmp_path / "rollouts" / f"step{step:06d}.jsonl.gz").write_bytes(b"")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "cut sho')
    records.open(1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]
    assert len(list((tmp_path / "rollouts").iterdir())) == 2


def test_a_row_says_which_version_produced_which_tokens(tmp_path: Path) -> None:
    whole = Completion(text="6", token_ids=(6,), logprobs=(-1.0,), finish_reason="stop", adapter="policy-v000002")
    earlier = (Segment(adapter="policy-v000000", tokens=2), Segment(adapter="policy-v000001", tokens=2))
    in_segments = replace(whole, token_ids=(1, 2, 3, 4, 5, 6), logprobs=(-1.0,) * 6, earlier=earlier)
    prompt = Prompt(problem=Problem(id="p", text="3+3=?", answer="6"), text="3+3=?", token_ids=(3, 3))
    result = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="6", terms={})
    graded = GradedGroup(RolloutGroup(prompt=prompt, completions=(whole, in_segments)), (result, result))
    Records(tmp_path, load_config("quickstart.yaml")).rollouts(3, [graded], [[0.0, 0.0]])
    with gzip.open(tmp_path / "rollouts" / "step000003.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [(row["adapter"], row["completion_tokens"], row["legs"]) for row in rows] == [
        ("policy-v000002", 1, [["policy-v000002", 1]]),
        ("policy-v000002", 6, [["policy-v000000", 2], ["policy-v000001", 2], ["policy-v000002", 2]]),
    ]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(RunState(step=step, position=step, version=step, config_hash="h"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step000002", "step000003"]
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == RunState(step=3, position=3, version=3, config_hash="h")
    assert Checkpoints(tmp_path / "none", keep=1).newest() is None
    drawn = torch.rand(3)
    restore_rng(found[1])
    assert torch.equal(torch.rand(3), drawn)


def test_the_hash_covers_what_the_numbers_depend_on() -> None:
    plain = config_hash(load_config("quickstart.yaml"))
    for override in ("train.steps=7", "output_dir=elsewhere", "checkpoint.every=3", "eval.every=1"):
        assert config_hash(load_config("quickstart.yaml", [override])) == plain
    for override in ("seed=1", "lora.rank=2", "train.problems_per_step=8", "rewards.format_weight=0.5"):
        assert config_hash(load_config("quickstart.yaml", [override])) != plain


def test_the_best_version_is_the_first_with_the_highest_score_that_is_still_there() -> None:
    scores = [(0, 0.2), (5, 0.6), (9, 0.6), (12, 0.5)]
    lines = [{"step": v, "adapter/version": v, "eval/a/avg": s, "eval/b/avg": -s} for v, s in scores]
    lines.insert(1, {"step": 3, "adapter/version": 3})
    assert best_version(lines, "a", range(13)) == 5
    assert best_version(lines, "b", range(13)) == 0
    assert best_version(lines, "a", [0, 9, 12]) == 9
    assert best_version(lines[:3], "a", range(13)) == 5
    assert best_version(lines, "c", range(13)) is None


def test_the_suite_that_decides_must_be_measured() -> None:
    config = load_config("quickstart.yaml", ["eval.suites=[held_out,some/mine.jsonl]", "eval.best=mine"])
    assert config.eval.best == "mine"
    with pytest.raises(ConfigError, match=r"eval.best is 'aime2024'; eval.suites has held_out"):
        load_config("quickstart.yaml", ["eval.best=aime2024"])


def test_a_model_without_a_padding_token_lends_its_end() -> None:
    tokenizer: Any = SimpleNamespace(pad_token_id=None, eos_token_id=7)
    assert pad_id_of(tokenizer) == 7


def test_the_summary_compares_the_first_and_the_last_evaluation() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=2, console=Console(file=out, width=200))
    scores = {"eval/s/avg": 0.25, "eval/s/low": 0.2, "eval/s/high": 0.3, "eval/s/tokens_mean": 5.0}
    last = {**scores, "eval/s/avg": 0.75, "eval/s/tokens_mean": 30.0}
    console.summary([{"step": 0, **scores}, {"step": 1}, {"step": 2, **last}], {"run": Path("there")})
    text = out.getvalue()
    assert "25.0% → 75.0%" in text
    assert "5.0 → 30.0" in text
    assert "there" in text
