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
    metrics = report.metrics()
    assert metrics["eval/aime2024/avg"] == 0.5
    assert metrics["eval/aime2024/pass_at_2"] == pytest.approx(2 / 3)
    path = report.write(tmp_path)
    assert path.name == "aime2024-policy-v000003.json"
    assert json.loads(path.read_text())["interval"] == list(report.interval)
    base = [dataclasses.replace(one, samples=(wrong, wrong)) for one in outcomes]
    assert compare(outcomes, base).mean == 0.5


def test_completions_of_another_version_cannot_measure_this_one(grader: Grader) -> None:
    stale = outcome("a", sample("1", Verdict.CORRECT), adapter="policy-v000002")
    with pytest.raises(ValueError, match="policy-v000002 cannot measure policy-v000003"):
        report_on(SUITES["held_out"], [stale], SamplingConfig(n=1), grader, VERSION_3)
