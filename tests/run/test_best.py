"""Which version `adapters/best` names."""

from __future__ import annotations

import pytest

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.run.records import best_version


def test_the_best_version_has_the_highest_score() -> None:
    """The first of equal versions, among those that still exist, and a trained one before the one it began with."""
    scores = [(0, 0.2), (5, 0.6), (9, 0.6), (12, 0.5)]
    lines = [{"step": v, "adapter/version": v, "eval/a/avg": s, "eval/b/avg": -s} for v, s in scores]
    lines.insert(1, {"step": 3, "adapter/version": 3})
    assert best_version(lines, "a", range(13)) == 5
    assert best_version(lines, "b", range(13)) == 0
    assert best_version(lines, "a", [0, 9, 12]) == 9
    assert best_version(lines[:3], "a", range(13)) == 5
    assert best_version(lines, "c", range(13)) is None
    assert best_version([{**line, "eval/a/avg": 0.0} for line in lines], "a", range(13)) == 3


def test_the_suite_that_decides_must_be_measured() -> None:
    config = load_config("quickstart.yaml", ["eval.suites=[held_out,some/mine.jsonl]", "eval.best=mine"])
    assert config.eval.best == "mine"
    with pytest.raises(ConfigError, match=r"eval.best is 'aime2024'; eval.suites has held_out"):
        load_config("quickstart.yaml", ["eval.best=aime2024"])
