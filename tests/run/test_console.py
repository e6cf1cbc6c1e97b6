"""What a person watches."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from rl_engine.run.console import RunConsole


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


def test_the_summary_of_a_run_without_a_first_evaluation_claims_no_beginning() -> None:
    out = io.StringIO()
    console = RunConsole(quiet=False, steps=2, console=Console(file=out, width=200))
    scores = {"eval/s/avg": 0.25, "eval/s/low": 0.2, "eval/s/high": 0.3, "eval/s/tokens_mean": 5.0}
    console.summary([{"step": 0}, {"step": 2, **scores}], {})
    assert "accuracy 25.0% after step 2  (95 % interval 20.0%–30.0%)" in out.getvalue()
    assert "→" not in out.getvalue()
    console.summary([{"step": 0}, {"step": 1, **scores}, {"step": 2, **scores}], {})
    assert "25.0% → 25.0%" in out.getvalue()
    assert "from step 1 on" in out.getvalue()
