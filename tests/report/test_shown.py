"""Which completions the page shows, and what it says about those that it cannot show."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rl_engine
from rl_engine.report import __main__ as command
from rl_engine.report.completions import (
    CHARACTERS,
    SAMPLES,
    bytes_in_page,
    shortened,
    shown_completions,
)
from rl_engine.report.page import read_runs
from tests.helpers.reported import RIGHT, TIMES, WRONG, chosen, sampled
from tests.helpers.run_directories import record_step, start_run


def test_problems_that_come_back_are_shown_at_every_such_step(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [["a", "again", "b"], ["c", "d"], ["again", "e"]])
    shown = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    found = chosen(shown)
    assert (found[0], found[2]) == ((1, "again"), (3, "again"))
    assert found[1] in [(2, "c"), (2, "d")]
    assert (shown.steps_read, shown.groups_total, shown.is_full) == (3, 7, False)
    assert shown == shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    (first, *_) = shown.groups
    assert (first.samples, first.accuracy, first.completions[1].verdict) == (2, 0.5, "incorrect")


def test_a_small_budget_is_spread_over_the_run(tmp_path: Path) -> None:
    sampled(tmp_path / "run", [[f"{step}-{place}" for place in range(2)] for step in range(8)])
    whole = shown_completions(tmp_path / "run", problems=2, budget_bytes=10**6)
    assert len(whole.groups) == 16
    room_for_four = 4 * bytes_in_page(whole.groups[0])
    some = shown_completions(tmp_path / "run", problems=2, budget_bytes=room_for_four)
    assert [group.step for group in some.groups] == [1, 3, 5, 7]
    assert some.is_full
    assert shown_completions(tmp_path / "run", problems=2, budget_bytes=0).groups == ()


def test_a_long_run_is_read_at_even_steps_and_at_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_engine.report.completions.STEPS", 4)
    sampled(tmp_path / "run", [["a"] for _ in range(10)])
    shown = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6)
    assert [group.step for group in shown.groups] == [1, 5, 9, 10]
    assert (shown.steps_read, shown.steps_total) == (4, 10)


def test_large_groups_and_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    records = start_run(tmp_path / "run")
    record_step(records, 1, {"a": [RIGHT] * (SAMPLES + 8) + [WRONG] * 16}, TIMES)
    (group,) = shown_completions(tmp_path / "run", problems=1, budget_bytes=10**6).groups
    assert len(group.completions) == SAMPLES
    assert (group.samples, group.accuracy) == (32, 0.5)
    cut = shortened("a" * CHARACTERS + "b" * 1234)
    assert cut.startswith("a" * (CHARACTERS // 2))
    assert cut.endswith("a" + "b" * 1234)
    assert "1,234 characters left out" in cut
    assert shortened("a" * CHARACTERS) == "a" * CHARACTERS


def test_a_step_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    sampled(tmp_path, [["a"], ["a"]])
    path = tmp_path / "rollouts" / "step000002.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert chosen(shown_completions(tmp_path, problems=1, budget_bytes=10**6)) == [(1, "a")]
    plain = gzip.decompress((tmp_path / "rollouts" / "step000001.jsonl.gz").read_bytes())
    path.unlink()
    path.with_suffix("").write_bytes(plain.replace(b'"step": 1', b'"step": 2'))
    assert chosen(shown_completions(tmp_path, problems=1, budget_bytes=10**6)) == [(1, "a"), (2, "a")]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _other_rows(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"step": 2}\n'))


def _other_values(path: Path) -> None:
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress(json.dumps({**rows[0], "prompt": None}).encode() + b"\n"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, "step000002.jsonl.gz cannot be read ("),
        (lambda path: path.write_bytes(b""), "step000002.jsonl.gz cannot be read ("),
        (lambda path: path.write_bytes(b"no gzip"), "step000002.jsonl.gz cannot be read ("),
        (lambda path: path.write_bytes(gzip.compress(b"no JSON\n")), "step000002.jsonl.gz cannot be read ("),
        (_other_rows, "step000002.jsonl.gz cannot be read (line 1 is not a completion)"),
        (_other_values, "step000002.jsonl.gz cannot be read (line 1 is not a completion)"),
    ],
)
def test_a_step_of_damaged_completions_is_named_the_rest_shown(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    records = start_run(run)
    for step in (1, 2, 3):
        record_step(records, step, {"a": [RIGHT, WRONG]}, TIMES)
    damage(run / "rollouts" / "step000002.jsonl.gz")
    result = CliRunner().invoke(command.app, [str(run)])
    assert result.exit_code == 0
    (line,) = [line for line in result.output.splitlines() if said in line]
    assert line.endswith(": its completions are left out")
    assert said in (run / "report.html").read_text()
    (shown,) = read_runs([run], 1)
    assert chosen(shown.completions) == [(1, "a"), (3, "a")]
    if damage not in (_other_rows, _other_values):
        with pytest.raises(ValueError, match=r"step000002.jsonl.gz cannot be read"):
            list(rl_engine.read_run(run).completions())


def test_completions_that_were_deleted_are_counted_not_warned_of(tmp_path: Path) -> None:
    """Completions take space, and deleting them is harmless. The page says how many steps still have them; asking for
    those of another step is an error."""
    run = tmp_path / "run"
    records = start_run(run)
    for step in (1, 2, 3):
        record_step(records, step, {"a": [RIGHT, WRONG]}, TIMES)
    (run / "rollouts" / "step000002.jsonl.gz").unlink()
    result = CliRunner().invoke(command.app, [str(run)])
    (line,) = result.output.splitlines()
    assert line.startswith("report ")
    (shown,) = read_runs([run], 1)
    assert (shown.completions.steps_read, shown.completions.steps_total) == (2, 3)
    with pytest.raises(ValueError, match="step 2"):
        list(rl_engine.read_run(run).completions(2))
