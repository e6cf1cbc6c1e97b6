"""Every command that writes leaves other people's files alone, and says so when it replaces a result of its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from evals.command import check_output
from evals.partial_results import PartialResults, PartialResultsError
from rewards import audit, check
from rl_engine.config.file import ConfigError, read_config
from rl_engine.inspect.__main__ import app as inspect_app
from rl_engine.report.__main__ import app as report_app
from rl_engine.sft import embedded
from rl_engine.sweep.__main__ import app as sweep_app
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.report import write_report
from rl_engine.sweep.schedule import check_ours
from rollout.files.ownership import MARKER
from rollout.models import EMBEDDED_DIR
from tests.helpers.run_directories import record_step, start_run, trained_run

MINE = "years of work\n"


def refused(app: typer.Typer, *arguments: object) -> str:
    """The command's output; it must exit with code 2."""
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.output
    return " ".join(found.output.split())


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the temporary directory, so that paths are short and do not wrap in the output."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("app", "option", "name"),
    [
        (inspect_app, "--plot", "thesis.png"),
        (inspect_app, "--plot", "thesis.pdf"),
        (inspect_app, "--output", "thesis.json"),
        (report_app, "--output", "thesis.html"),
        (check.app, "--output", "thesis.jsonl"),
        (audit.app, "--output", "thesis.jsonl"),
    ],
)
def test_a_file_of_somebody_else_is_not_replaced(app: typer.Typer, option: str, name: str, tmp_path: Path) -> None:
    """The check comes first: whatever else is wrong with the command, none of its inputs is read before."""
    mine = Path(name)
    mine.write_text(MINE)
    said = refused(app, "nowhere", option, mine)
    assert f"{option}: {mine} already exists" in said
    assert "nothing was written. Move it away, or give another name" in said
    assert mine.read_text() == MINE


@pytest.mark.parametrize(("app", "option"), [(inspect_app, "--plot"), (report_app, "--output")])
def test_a_directory_is_not_taken_for_a_file(app: typer.Typer, option: str, tmp_path: Path) -> None:
    assert f"{option}: {tmp_path} is a directory" in refused(app, tmp_path / "nowhere", option, tmp_path)


def test_reports_and_plots_replace_their_own_and_say_so() -> None:
    records = start_run(Path("run"), "train.steps=5")
    record_step(records, 1, {}, {"time/step_s": 1.0, "throughput/tokens_per_s": 2.0})
    page, plots = Path("page.html"), Path("plots")
    for format in ("png", "svg"):
        arguments = ["run", "--output", str(page), "--plots", str(plots), "--format", format]
        first = CliRunner().invoke(report_app, arguments)
        assert first.exit_code == 0, first.output
        assert "replaces plots" not in first.output
        again = CliRunner().invoke(report_app, arguments)
        assert "replaces page.html, an earlier result" in again.output
        assert f"replaces plots/throughput.{format}, an earlier result" in again.output
    (plots / "throughput.png").write_text(MINE)
    others = {path: path.read_bytes() for path in plots.iterdir()}
    said = refused(report_app, "run", "--output", page, "--plots", plots, "--format", "png")
    assert "--plots: plots/throughput.png already exists" in said
    assert {path: path.read_bytes() for path in plots.iterdir()} == others


@pytest.mark.parametrize("option", ["--output", "--plots"])
def test_a_report_s_place_is_tried_before_it_is_drawn(option: str) -> None:
    """A file that stays in place is not reported as replaced."""
    start_run(Path("run"))
    assert CliRunner().invoke(report_app, ["run"]).exit_code == 0
    Path("file").write_text(MINE)
    said = refused(report_app, "run", option, Path("file", "page.html") if option == "--output" else "file")
    assert f"{option}: file is not a directory" in said
    assert "replaces" not in refused(report_app, "run", "gone")


def test_a_sweep_leaves_a_run_as_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    record_step(start_run(run), 1, {}, {"time/step_s": 1.0})
    before = {*run.iterdir()}
    said = refused(sweep_app, "--config", "sweep_rates.yaml", f"output_dir={run}")
    assert f"output_dir: {run} holds a run: give the sweep another output_dir" in said
    assert {*run.iterdir()} == before


def test_figures_of_adapters_replace_their_own_and_say_so() -> None:
    trained_run(Path("run"), "lora.rank=2")
    arguments = ["run", "--plot", "plot.png", "--output", "figures.json"]
    assert "replaces" not in CliRunner().invoke(inspect_app, arguments).output
    again = CliRunner().invoke(inspect_app, arguments)
    assert again.exit_code == 0
    for name in ("plot.png", "figures.json"):
        assert f"replaces {name}, an earlier result" in again.output


@pytest.mark.parametrize("name", ["scores.json", "scores.md", "scores.samples.jsonl.gz"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_an_evaluation_replaces_nothing_of_somebody_else(name: str, overwrite: bool, tmp_path: Path) -> None:
    """Neither the report nor its companion files are replaced, with or without `--overwrite`."""
    (tmp_path / name).write_text(MINE)
    output = tmp_path / "scores.json"
    companions = [tmp_path / "scores.md", tmp_path / "scores.samples.jsonl.gz"]
    with pytest.raises(ValueError, match=f"--output: {tmp_path / name} already exists"):
        check_output(output, overwrite=overwrite, companions=companions)
    assert (tmp_path / name).read_text() == MINE


def test_an_evaluation_replaces_its_own_when_asked(tmp_path: Path) -> None:
    output, table = tmp_path / "scores.json", tmp_path / "scores.md"
    output.write_text(json.dumps({"format": 1, "versions": {}, "suites": []}))
    table.write_text("# a table")
    told = check_output(output, overwrite=True, companions=[table])
    assert told == [f"replaces {path}, an earlier result" for path in (output, table)]
    output.unlink()
    # The command was interrupted between the two files.
    assert len(check_output(output, overwrite=False, companions=[table], unfinished=True)) == 1


@pytest.mark.parametrize("text", [MINE, "[1]\n", '{"a": 1}\n'])
def test_a_file_named_like_an_unfinished_evaluation_stays(text: str, tmp_path: Path) -> None:
    """A file that only has the name of an unfinished evaluation is left alone."""
    beside = tmp_path / "scores.partial-notes.jsonl"
    beside.write_text(MINE)
    partial = PartialResults(tmp_path / "scores.json", {"seed": 0})
    begun = [partial.is_begun]
    with closing(partial):
        partial.begin(overwrite=True)
    begun.append(partial.is_begun)
    assert begun == [False, True]
    assert beside.read_text() == MINE
    partial.path.write_text(text)
    with pytest.raises(PartialResultsError, match="has the name of an unfinished evaluation but is not one"):
        _ = partial.is_begun


@pytest.mark.parametrize("name", ["table.md", "summary.json", "cells", "results.jsonl"])
def test_a_sweep_leaves_a_directory_of_somebody_else(name: str, tmp_path: Path) -> None:
    if "." in name:
        (tmp_path / name).write_text(MINE)
    else:
        (tmp_path / name).mkdir()
    for options in ([], ["--dry-run"]):
        said = refused(sweep_app, "--config", "sweep_rates.yaml", f"output_dir={tmp_path}", *options)
        assert "is not known to be a sweep" in said or "does not hold the results of a sweep" in said
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_sweep_of_ours_goes_on(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("Score: `x`")
    (tmp_path / MARKER).write_text("Written by a sweep of rl_engine.\n")
    check_ours(tmp_path)
    with pytest.raises(ConfigError, match="is not a directory"):
        check_ours(tmp_path / "table.md")


def test_a_drawing_of_a_sweep_leaves_a_table_of_somebody_else(tmp_path: Path) -> None:
    config = read_config(SweepConfig, "sweep_rates.yaml", [f"output_dir={tmp_path}"])
    write_report(config, {})
    for again in (True, False):
        found = CliRunner().invoke(sweep_app, ["--redraw", str(tmp_path / "summary.json")])
        assert (found.exit_code == 0) is again, found.output
        (tmp_path / "table.md").write_text(MINE)
    assert (tmp_path / "table.md").read_text() == MINE


def test_the_embedded_model_is_made_beside_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = inspect.signature(embedded.build).parameters["output"].default
    assert default.resolve() != EMBEDDED_DIR.resolve()

    def unreached(*_: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(embedded, "warm_start", unreached)
    make: Callable[[Path], None] = embedded.build
    (tmp_path / "thesis.txt").write_text(MINE)
    with pytest.raises(typer.Exit):
        make(tmp_path)
    assert "is not empty and was not written by this command" in capsys.readouterr().err
    (tmp_path / "made.json").write_text("{}")
    with pytest.raises(AssertionError, match="it was begun"):
        make(tmp_path)
    assert f"replaces {tmp_path}, an earlier one" in capsys.readouterr().out
