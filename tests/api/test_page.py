"""docs/python.md, cell by cell, with less work in each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rl_engine.api import process
from tests.helpers import forked_commands

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
# A text of the page → its replacement here.
SMALLER = {
    'small = {"train.steps": 10, "eval.every": 5}': 'small = {"train.steps": 2, "train.problems_per_step": 8, '
    '"sampling.n": 4, "eval.limit": 8, "data.limit": 64, "log.tensorboard": False}',
    "limit=128": "limit=8",
}
WRITE = "%%writefile "


@pytest.mark.engine
def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "start", forked_commands.start)
    text = PAGE.read_text()
    for said, here in SMALLER.items():
        assert text.count(said) == 1
        text = text.replace(said, here)
    names: dict[str, Any] = {}
    for cell in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if cell.startswith(WRITE):
            name, _, source = cell.removeprefix(WRITE).partition("\n")
            Path(name).write_text(source)
        else:
            exec(compile(cell, str(PAGE), "exec"), names)  # as a reader would
    plain, work = names["plain"], names["work"]
    assert [run.step for run in (plain, work)] == [2, 2]
    assert [row["step"] for row in plain.metrics] == list(names["frame"].index) == [0, 1, 2]
    assert len(list(plain.completions())) == 64
    assert {one["step"] for one in work.completions(2)} == {2}
    assert work.settings["rewards"]["function"] == "my_rewards:shows_its_work"
    # The second run's reward is that of a right answer plus what the cell's function adds.
    for one in work.completions():
        added = 0.1 * min(one["completion"].strip().count("\n"), 3)
        assert one["reward"] == pytest.approx((one["verdict"] == "correct") + added)
    assert [row["adapter"] for row in names["scores"]["rows"]] == ["base", "plain", "work"]
    assert set(names["scores"]["minus_base"]) == {"plain", "work"}
    told = capsys.readouterr().out
    assert "held-out" in told  # the console of `train`, showing what the command prints
    assert re.search(r"^2 0\.\d+ 0\.\d+$", told, re.MULTILINE)  # a row of `train_steps`, as it arrived
