"""benchmarks/second_task.py and benchmarks/paired.py: which of a sweep's runs they judge, and how they compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import paired
from benchmarks.second_task import Left, Trained, by_own_evaluations, comparisons, draw, kept_at, means, trained_runs
from rl_engine.sweep.cells import arms_of, cell_of
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


def swept(
    directory: Path, arms: dict[str, dict[str, int]], rates: Sequence[float], seeds: Sequence[int]
) -> SweepConfig:
    values = {
        "base": "quickstart.yaml",
        "grid": {"optim.lr": list(rates)},
        "arms": arms,
        "seeds": list(seeds[:1]),
        "confirm_seeds": list(seeds[1:]),
        "score": {"metric": "eval/largest_test/avg"},
        "output_dir": str(directory),
    }
    return SweepConfig.model_validate(values)


def write_results(config: SweepConfig, scores: dict[tuple[str, float, int], float]) -> None:
    """Write the summary of a sweep from its scores by arm, rate and seed."""
    found = {}
    for arm in arms_of(config):
        for rate in arm.axis_values:
            for seed in (*config.seeds, *config.confirm_seeds):
                if (score := scores.get((arm.name, rate, seed))) is not None:
                    name = cell_of(config, arm, rate, seed).name
                    curves = {"eval/largest_test/avg": [(0, 0.02), (10, score)]}
                    found[name] = Result(
                        cell=name, arm=arm.name, axis_value=rate, seed=seed, overrides={}, config_hash="",
                        status="done", score=score, best=score, curves=curves, seconds=1.0, error="",
                    )  # fmt: skip
    write_report(config, found)


def test_the_seed_that_chose_the_rate_does_not_judge_it(tmp_path: Path) -> None:
    config = swept(tmp_path, {"rank 1": {"lora.rank": 1}}, [1e-4, 1e-3], [0, 1, 2])
    write_results(
        config, {("rank 1", 1e-4, 0): 0.2, ("rank 1", 1e-3, 0): 0.6, **{("rank 1", 1e-3, s): 0.5 for s in (1, 2)}}
    )
    assert [(one.seed, one.rate, one.steps) for one in trained_runs(tmp_path)] == [(1, 1e-3, 10), (2, 1e-3, 10)]


def test_what_is_kept_is_read_off_where_as_much_is_learned() -> None:
    base, lefts = by_own_evaluations([trained(1)])
    # From (0.25, 0.375) to (0.5, 0.25), a fifth of the way.
    assert kept_at(lefts, base, 0.3) == pytest.approx(0.35)
    assert kept_at(lefts, base, 0.135) == pytest.approx(0.4375)  # halfway from the base's (0.02, 0.5)
    assert kept_at(lefts, base, 0.6) is None


def test_arms_are_compared_seed_by_seed_with_the_reference() -> None:
    base, lefts = by_own_evaluations([trained(1), trained(2, worse=0.125)])
    full = [replace(one, arm="full", second_task_accuracy=one.second_task_accuracy + 0.25) for one in lefts]
    rows = {(arm, steps): cells for arm, steps, *cells in comparisons([*lefts, *full], base)}
    assert rows["rank 1", "10"] == ["-25.0, 2 seeds", "0.0, 2 seeds", ""]
    # Worked out by hand on the straight lines, at 30 %: 35 and 16.25 against 42.71 and 30.28.
    assert rows["rank 1", "at 30%"][1].startswith("-10.9 (")
    assert rows["full", "at 30%"][2].startswith("36.5 (")
    assert ("full", "10") not in rows


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


def test_arms_of_a_sweep_are_paired_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = swept(tmp_path, {"a": {"lora.rank": 1}, "b": {"lora.rank": 8}}, [1e-3], [0, 1, 2])
    of_seeds = {"a": (0.9, 0.5, 0.7), "b": (0.1, 0.4, 0.5)}  # the first seed chose the rate
    write_results(config, {(arm, 1e-3, seed): score for arm, own in of_seeds.items() for seed, score in enumerate(own)})
    paired.main(tmp_path / "summary.json", ["a", "b"])
    # Differences 0.1 and 0.2: their mean, ± 12.7062 × 0.0707 / √2.
    assert capsys.readouterr().out == "a − b: +0.1500 (-0.4853 … +0.7853), 2 seeds\n"
    paired.main(tmp_path / "summary.json", ["a", "b", "b", "a"])
    assert capsys.readouterr().out.splitlines()[-1] == "the first − the second: +0.3000 (-0.9706 … +1.5706), 2 seeds"
    for wrong, words in ((["a", "c"], "no arm 'c' with a score: there are a; b"), (["a", "b", "a"], "give two arms")):
        with pytest.raises(SystemExit, match=words):
            paired.main(tmp_path / "summary.json", wrong)
