"""Runs with completions to show, and the data embedded in a report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rewards import Verdict
from rl_engine.report.completions import (
    ShownCompletions,
)
from tests.helpers.run_directories import record_step, start_run

RIGHT, WRONG = ("4", Verdict.CORRECT), ("5", Verdict.INCORRECT)

TIMES = {"time/step_s": 2.0, "time/learn_s": 1.5, "throughput/tokens_per_s": 50.0}


def sampled(run: Path, steps: list[list[str]], text: str = "4") -> None:
    """Record a run whose steps sampled these problems, with two completions each."""
    records = start_run(run)
    for step, problems in enumerate(steps, start=1):
        record_step(records, step, {key: [(text, Verdict.CORRECT), WRONG] for key in problems}, TIMES)


def chosen(shown: ShownCompletions) -> list[tuple[int, str]]:
    return [(group.step, group.problem_id) for group in shown.groups]


def embedded_data(page: str) -> Any:
    """The data that the page's scripts parse."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])
