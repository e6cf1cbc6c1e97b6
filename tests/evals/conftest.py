"""Fixtures that the tests of evaluation share."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from rewards import Grader
from rollout.adapters import AdapterStore
from tests.helpers.peft_adapters import write_peft


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A published version."""
    store = AdapterStore(tmp_path / "adapters")
    return store.publish(7, lambda scratch: write_peft(scratch), {"rank": 2, "base_model": "embedded"}).path


@pytest.fixture
def one_grader(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting new grading processes for every evaluation would take most of the time."""
    monkeypatch.setattr("evals.evaluate.Grader.from_config", lambda *_: contextlib.nullcontext(grader))
