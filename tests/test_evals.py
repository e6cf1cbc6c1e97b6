"""Suites, estimators and reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evals.estimators import average, bootstrap, wilson
from evals.report import report_on
from evals.suites import SUITES, find_suite, load_suite, suite_needs_hub
from rewards import GradeResult, Verdict
from rollout.config import DataConfig, SamplingConfig
from rollout.problems import SOURCES
from rollout.types import Completion, Problem, Prompt, RolloutGroup

TRAINING = DataConfig(source="arithmetic")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_published_table(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def test_the_bootstrap_has_the_width_of_the_normal_approximation_and_its_seed() -> None:
    scores = np.random.default_rng(0).random(400)
    low, high = bootstrap(scores)
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.1)
    assert bootstrap(scores) == (low, high)


def test_average_counts_problems_and_samples() -> None:
    score, (low, high) = average(np.array([[True, False], [True, True], [False, False]]))
    assert score == 0.5
    assert low < score < high


def test_a_report_by_hand(tmp_path: Path) -> None:
    def group(name: str, level: str, lengths: tuple[int, ...]) -> RolloutGroup:
        problem = Problem(id=name, text=name, answer="1", level=level)
        completions = tuple(
            Completion(
                text="",
                token_ids=(0,) * length,
                logprobs=(0.0,) * length,
                finish_reason="length" if length == 9 else "stop",
                adapter="policy-v000003",
            )
            for length in lengths
        )
        return RolloutGroup(prompt=Prompt(problem=problem, text=name, token_ids=(1,)), completions=completions)

    right = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="1")
    wrong = GradeResult(verdict=Verdict.INCORRECT, reward=0.0, extracted="2")
    none = GradeResult(verdict=Verdict.NO_ANSWER, reward=0.0, extracted=None)
    report = report_on(
        SUITES["aime2024"],
        "policy-v000003",
        SamplingConfig(n=2, max_tokens=9, temperature=0.6),
        [group("a", "1", (3, 5)), group("b", "2", (9, 7))],
        [(right, right), (none, wrong)],
    )
    assert (report.avg, report.problems, report.samples) == (0.5, 2, 2)
    assert (report.tokens_mean, report.tokens_mean_correct, report.truncated_frac) == (6.0, 4.0, 0.25)
    assert report.verdicts["correct"] == 0.5
    assert report.verdicts["no_answer"] == 0.25
    assert report.by_level == {"1": 1.0, "2": 0.0}
    assert report.metrics()["eval/aime2024/avg"] == 0.5
    path = report.write(tmp_path)
    assert path.name == "aime2024-policy-v000003.json"
    assert json.loads(path.read_text())["interval"] == list(report.interval)


def test_suites_are_named_versioned_and_come_from_known_sources() -> None:
    assert {"gsm8k", "math500", "math", "aime2024", "aime2025", "aime2026", "held_out"} <= set(SUITES)
    for suite in SUITES.values():
        assert suite.version >= 1
        assert suite.source == "arithmetic" or suite.source in SOURCES
    with pytest.raises(ValueError, match="aime2024"):
        find_suite("aime")
    assert suite_needs_hub(SUITES["gsm8k"], None)
    assert not suite_needs_hub(SUITES["gsm8k"], "data")


def test_the_held_out_suite_is_fixed() -> None:
    held_out = load_suite(find_suite("held_out"), TRAINING, None, None)
    assert len(held_out) == 256
    assert held_out == load_suite(find_suite("held_out"), TRAINING, None, None)
    assert load_suite(find_suite("held_out"), TRAINING, None, 10) == held_out[:10]


def test_a_file_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "problem": "1+1", "answer": "2"}\n')
    suite = find_suite(str(path))
    assert suite.name == "mine"
    assert [p.id for p in load_suite(suite, TRAINING, None, None)] == ["a"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count"), [("gsm8k", 1319), ("math500", 500), ("aime2024", 30), ("aime2025", 30), ("aime2026", 30)]
)
def test_suites_read_from_a_directory(name: str, count: int, shared_data: Path) -> None:
    assert len(load_suite(find_suite(name), TRAINING, str(shared_data), None)) == count
