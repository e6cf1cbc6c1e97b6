"""The report on one adapter, and the comparison of two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from evals.scoring.report import compare, report_on
from evals.suites import SUITES
from rewards import Grader, Verdict
from rollout.config import SamplingConfig
from rollout.types import AdapterRef
from tests.helpers.builders import outcome, sample

WRONG = Verdict.INCORRECT
VERSION_3 = AdapterRef(name="policy", version=3, path=Path("a"), sha256="9f", rank=1)


def test_a_report_by_hand(tmp_path: Path, grader: Grader) -> None:
    key = VERSION_3.key
    right, wrong = sample("1", Verdict.CORRECT, tokens=3), sample("2", tokens=7)
    cut_off = sample(None, Verdict.NO_ANSWER, tokens=9, truncated=True)
    outcomes = [
        outcome("a", right, sample("1", Verdict.CORRECT, tokens=5), level="1", adapter=key, sampling_s=0.5),
        outcome("b", cut_off, wrong, level="10", adapter=key, sampling_s=1.5),
        outcome("c", wrong, right, level="2", adapter=key, sampling_s=1.0),
    ]
    sampling = SamplingConfig(n=2, max_tokens=9, temperature=0.6)
    report = report_on(SUITES["aime2024"], outcomes, sampling, grader, VERSION_3)
    assert (report.adapter, report.adapter_sha256, report.suite_version) == (key, "9f", 1)
    assert (report.avg, report.problems, report.samples) == (0.5, 3, 2)
    assert {k: estimate.value for k, estimate in report.pass_at.items()} == {1: 0.5, 2: pytest.approx(2 / 3)}
    # One right and one wrong answer tie, for half a point.
    assert report.maj_at[2].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert (report.tokens_mean, report.tokens_mean_correct) == (34 / 6, 11 / 3)
    assert report.tokens_mean_wrong == 23 / 3
    assert report.tokens_per_s == pytest.approx(34 / 3)
    assert report.truncated_frac == pytest.approx(1 / 6)
    assert report.verdicts["no_answer"] == pytest.approx(1 / 6)
    assert {name: (part.problems, part.avg) for name, part in report.by_level.items()} == {
        "1": (1, 1.0),
        "2": (1, 0.5),
        "10": (1, 0.0),
    }
    assert list(report.by_level) == ["1", "2", "10"]
    assert report.by_subject["s"].tokens_mean == 34 / 6
    low, high = report.interval
    assert 0 <= low < 0.5 < high <= 1
    metrics = {
        "avg": 0.5,
        "low": low,
        "high": high,
        "tokens_mean": 34 / 6,
        "tokens_mean_correct": 11 / 3,
        "tokens_mean_wrong": 23 / 3,
        "truncated_frac": 1 / 6,
        "pass_at_2": pytest.approx(2 / 3),
        "maj_at_2": pytest.approx(0.5),
    }
    assert report.metrics() == {f"eval/aime2024/{name}": value for name, value in metrics.items()}
    alone = dataclasses.replace(report, samples=1, tokens_mean_correct=None)
    absent = {"pass_at_2", "maj_at_2", "tokens_mean_correct"}
    assert alone.metrics().keys() == {f"eval/aime2024/{name}" for name in metrics if name not in absent}
    path = report.write(tmp_path)
    assert path.name == "aime2024-policy-v000003.json"
    assert json.loads(path.read_text())["interval"] == list(report.interval)
    base = [dataclasses.replace(one, samples=(wrong, wrong)) for one in outcomes]
    assert compare(outcomes, base).mean == 0.5


def test_a_report_on_the_base_says_how_it_was_sampled(tmp_path: Path, grader: Grader) -> None:
    answers = [outcome(name, *[sample("2", verdict)] * 3) for name, verdict in (("a", Verdict.CORRECT), ("b", WRONG))]
    sampling = SamplingConfig(n=3, max_tokens=9, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1)
    report = report_on(SUITES["aime2024"], answers, sampling, grader, None)
    assert (report.adapter, report.adapter_sha256, report.tokens_per_s) == ("base", None, None)
    said = (report.temperature, report.top_p, report.max_tokens, report.top_k, report.min_p)
    assert said == (0.6, 0.9, 9, 20, 0.1)
    assert (*report.pass_at,) == (*report.maj_at,) == (1, 2, 3)
    assert report.by_level == {}
    named = report_on(SUITES["aime2024"], answers, sampling, grader, None, "mine")
    assert named == dataclasses.replace(report, adapter="mine")
    assert json.loads(named.write(tmp_path / "new" / "evals").read_text())["adapter"] == "mine"


def test_completions_of_another_version_cannot_measure_this_one(grader: Grader) -> None:
    stale = outcome("a", sample("1", Verdict.CORRECT), adapter="policy-v000002")
    with pytest.raises(ValueError, match="policy-v000002 cannot measure policy-v000003"):
        report_on(SUITES["held_out"], [stale], SamplingConfig(n=1), grader, VERSION_3)
