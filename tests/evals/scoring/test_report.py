"""The report on one adapter, and the comparison of two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evals.results import SuiteResult
from evals.scoring.estimators import Difference
from evals.scoring.report import compare, report_on
from evals.suites import SUITES
from evals.tables import difference_line, grids_of
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
    two_of_three = outcome("a", *[sample("1", Verdict.CORRECT)] * 2, sample("2"))
    metrics = report_on(SUITES["aime2024"], [two_of_three], sampling, grader, None).metrics()
    assert metrics["eval/aime2024/avg"] == pytest.approx(2 / 3)
    assert metrics["eval/aime2024/maj_at_3"] == 1


def test_completions_of_another_version_cannot_measure_this_one(grader: Grader) -> None:
    stale = outcome("a", sample("1", Verdict.CORRECT), adapter="policy-v000002")
    with pytest.raises(ValueError, match="policy-v000002 cannot measure policy-v000003"):
        report_on(SUITES["held_out"], [stale], SamplingConfig(n=1), grader, VERSION_3)


def test_every_number_of_a_table_stands_under_its_name(grader: Grader) -> None:
    """Twelve samples of 48 tokens in all, sampled in two seconds: five are right, and three failed in grading."""
    right, wrong = sample("1", Verdict.CORRECT, tokens=3), sample("2", tokens=7)
    failed = [sample(None, verdict) for verdict in (Verdict.ERROR, Verdict.TIMEOUT, Verdict.UNPARSEABLE)]
    outcomes = [
        outcome("a", right, right, wrong, level="1", sampling_s=2.0),
        outcome("b", sample(None, Verdict.NO_ANSWER, tokens=9, truncated=True), right, failed[0], level="1"),
        outcome("c", wrong, sample("2", tokens=7, truncated=True), right, level="2"),
        outcome("d", *failed[1:], right, level="2"),
    ]
    report = report_on(SUITES["aime2024"], outcomes, SamplingConfig(n=3, max_tokens=9), grader, None, "mine")
    nothing = [dataclasses.replace(one, samples=(wrong, wrong, wrong)) for one in outcomes]
    other = report_on(SUITES["aime2024"], nothing, SamplingConfig(n=3, max_tokens=9), grader, None)
    prepared: Any = None  # the tables do not read it
    scores, by_k, by_level, by_subject = grids_of(
        SuiteResult(prepared=prepared, reports=(other, report), differences={}, contamination=None)
    )
    low, high = (f"{100 * end:.1f}" for end in report.interval)
    assert dict(zip(scores.header, scores.rows[1], strict=True)) == {
        "": "mine",
        "avg@3 (95 %)": f"41.7 % ({low}–{high})",
        "pass@3": "100.0 %",
        "maj@3": "75.0 %",
        "tokens": "4.0",
        "right": "3.0",
        "wrong": "4.7",
        "cut off": "16.7 %",
        "no answer": "8.3 %",
        "failed": "25.0 %",
        "tokens/s": "24",
    }
    assert [(row[0], row[-1].partition(" (")[0]) for row in by_k.rows[2:]] == [
        ("mine, pass@k", "100.0 %"),
        ("mine, maj@k", "75.0 %"),
    ]
    assert (by_level.header, by_subject.header[0]) == (("by level", "problems", "base", "mine"), "by subject")
    assert [[cell.partition(" (")[0] for cell in row] for row in by_level.rows] == [
        ["1", "2", "0.0 %", "50.0 %"],
        ["2", "2", "0.0 %", "33.3 %"],
    ]


def test_a_difference_is_told_in_points_with_its_sign() -> None:
    found = Difference(mean=-0.125, interval=(-0.25, 0.05), p_value=0.0014, test="some test", better=1, worse=3000)
    told = "mine − base: -12.5 points (95 % -25.0 to +5.0), {} (some test; better on 1 problems, worse on 3,000)"
    assert difference_line("mine", found) == told.format("p = 0.001")
    assert difference_line("mine", dataclasses.replace(found, p_value=0.0009)) == told.format("p < 0.001")
