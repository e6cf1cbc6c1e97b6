"""The learner's benchmark computes the same as a run does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import learner
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks


@pytest.mark.parametrize("worth", [True, False])
def test_layers_are_compiled_where_a_run_compiles_them(
    worth: bool, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[int] = []

    def compile_layers(_: Learner, prompts: Sequence[Sequence[int]]) -> None:
        compiled.extend(map(len, prompts))

    monkeypatch.setattr(Learner, "is_worth_compiling", worth)
    monkeypatch.setattr(Learner, "compile_layers", compile_layers)
    monkeypatch.setattr(learner, "leave_ranks", lambda: None)  # the session's engine is in the process group
    learner.main("embedded", dtype="float32", sequences=2, prompt=5, completion=4, rounds=1)
    assert compiled == ([5] if worth else [])
    assert "LoRA learner to matrix products ratio" in capsys.readouterr().out
