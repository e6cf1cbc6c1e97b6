"""Options of `python -m evals` without effect are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from evals.__main__ import app, options_of
from evals.options import EvalOptions, refuse_idle


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--suite", "held_out", "--data-dir", "x"], "--data-dir is x, and has no effect: held_out is not read"),
        (["--suite", "held_out,my.jsonl", "--data-dir", "x"], "held_out, my.jsonl is not read from a directory"),
        (["--suite", "gsm8k", "--top-p", "0.9"], "--top-p is 0.9, and has no effect: at temperature 0"),
        (["--suite", "aime2024", "--samples", "1", "--temperature", "0", "--top-p", "0.9"], "--top-p is 0.9"),
        (["--suite", "held_out", "--revision", "main"], "--revision is main, and has no effect: --model embedded"),
    ],
)
def test_an_option_without_effect_is_refused_in_one_line(arguments: list[str], line: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    result = CliRunner().invoke(app, ["--model", "embedded", "--output", str(output), *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: --")
    assert line in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--template", "chatt"], "--template is 'chatt'; known are chat, frame, plain, "),
        (["--frame", "Q: {question}"], "--frame needs `{problem}` where the problem goes"),
        (["--template", "chat", "--frame", "{problem}"], "--frame and --template frame go together"),
        (["--template", "frame"], "--frame and --template frame go together"),
        (["--seed", "-1"], "--seed is '-1': input should be greater than or equal to 0"),
        (["--suite", " nope"], "--suite: no suite 'nope': known are"),
        (["--suite", "held_out , nope"], "--suite: no suite 'nope': known are"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], line: str, tmp_path: Path) -> None:
    rest = ["--model", "embedded", "--suite", "gsm8k", "--output", str(tmp_path / "scores.json")]
    result = CliRunner().invoke(app, [*rest, *arguments])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {line}")
    assert result.output.count("\n") == 1


def test_the_report_does_not_take_the_place_of_its_tables(tmp_path: Path) -> None:
    output = tmp_path / "scores.md"
    result = CliRunner().invoke(app, ["--model", "embedded", "--suite", "held_out", "--output", str(output)])
    assert result.exit_code == 2
    assert "is where the tables go, beside the report: give scores.json" in result.output


def test_a_comma_may_be_part_of_a_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums, easy.jsonl").touch()
    given = ["sums, easy.jsonl", "gsm8k, math500", "a," * 200 + "b"]
    options = options_of({"suite": given, "adapter": None, "model": "embedded", "output": tmp_path / "x.json"})
    assert options.suites == ("sums, easy.jsonl", "gsm8k", "math500", *["a"] * 200, "b")


def test_options_that_do_something_are_taken(tmp_path: Path) -> None:
    for given in (
        {"suites": ("gsm8k", "held_out"), "data_dir": "x"},
        {"suites": ("aime2024",), "top_p": 0.9},
        {"suites": ("gsm8k",), "samples": 4, "top_p": 0.9},
        {"suites": ("gsm8k",), "model": "org/name", "revision": "main"},
    ):
        refuse_idle(EvalOptions(**{"model": "embedded", "output": tmp_path / "scores.json", **given}))  # type: ignore[arg-type]
