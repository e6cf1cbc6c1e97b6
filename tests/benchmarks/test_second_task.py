"""benchmarks/second_task.py: what of its runs is judged, and what is read of a run that evaluated itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.second_task import Left, Trained, by_own_evaluations, draw, means, trained_runs
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import write_report
from rl_engine.sweep.results import Result
from rollout.adapters import PEFT_CONFIG

OWN = {"eval/largest_test/avg": [0.02, 0.25, 0.5], "eval/held_out/avg": [0.5, 0.375, 0.25]}


def trained(seed: int, *, worse: float = 0.0) -> Trained:
    curves = {
        name: [(step, value - worse * (step > 0)) for step, value in zip((0, 5, 10), values, strict=True)]
        for name, values in OWN.items()
    }
    return Trained(arm="rank 1", seed=seed, rate=1e-3, curves=curves, directory=Path("v000010"))


def test_each_evaluation_of_a_run_is_a_point() -> None:
    base, lefts = by_own_evaluations([trained(1), trained(2, worse=0.125)])
    assert base == (0.5, 0.02)
    found = [(one.seed, one.steps, one.second_task_accuracy, one.first_task_accuracy) for one in lefts]
    assert found == [(1, 5, 0.25, 0.375), (1, 10, 0.5, 0.25), (2, 5, 0.125, 0.25), (2, 10, 0.375, 0.125)]


def test_a_mean_is_over_seeds_of_one_length() -> None:
    _, lefts = by_own_evaluations([trained(1), trained(2, worse=0.125)])
    first, last = means(lefts)
    assert (first.steps, first.second_task_accuracy, first.first_task_accuracy) == (5, 0.1875, 0.3125)
    assert (last.steps, last.second_task_accuracy, last.first_task_accuracy) == (10, 0.4375, 0.1875)
    assert last.second_task_log_loss is None


def test_the_seed_that_chose_the_rate_does_not_judge_it(tmp_path: Path) -> None:
    config = SweepConfig.model_validate(
        {
            "base": "quickstart.yaml",
            "grid": {"optim.lr": [1e-4, 1e-3]},
            "arms": {"rank 1": {"lora.rank": 1}},
            "seeds": [0],
            "confirm_seeds": [1, 2],
            "score": {"metric": "eval/largest_test/avg"},
            "output_dir": str(tmp_path),
        }
    )
    results = {}
    for rate, seed, score in ((1e-4, 0, 0.2), (1e-3, 0, 0.6), (1e-3, 1, 0.5), (1e-3, 2, 0.4)):
        name = f"rank-1_optim.lr={rate:g}_seed={seed}"
        results[name] = Result(
            cell=name, arm="rank 1", axis_value=rate, seed=seed, overrides={}, config_hash="", status="done",
            score=score, best=score, curves={"eval/largest_test/avg": [(0, 0.02), (10, score)]}, seconds=1.0, error="",
        )  # fmt: skip
    write_report(config, results)
    assert [(one.seed, one.rate, one.steps) for one in trained_runs(tmp_path)] == [(1, 1e-3, 10), (2, 1e-3, 10)]


@pytest.mark.parametrize("log_loss", [0.5, None])
def test_the_figure_is_drawn_with_and_without_log_losses(tmp_path: Path, log_loss: float | None) -> None:
    left = Left(
        arm="full", seed=1, steps=5, rate=1e-4, second_task_log_loss=log_loss, second_task_accuracy=0.5,
        first_task_accuracy=0.25, kl_base=None,
    )  # fmt: skip
    draw([left], 0.5, tmp_path / "figure.png", {})
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_directory_without_an_adapter_is_a_whole_model(tmp_path: Path) -> None:
    one = Trained(arm="full", seed=1, rate=1e-4, curves={"test/log_loss": [(5, 0.5)]}, directory=tmp_path)
    assert one.is_full
    assert one.is_supervised
    (tmp_path / PEFT_CONFIG).write_text("{}")
    assert not one.is_full
