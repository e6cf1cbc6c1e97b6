"""Interruptions leave no trace: the same command goes on, with its own settings alone, in one process at a time."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evals.__main__ import app, how_to_continue
from evals.options import EvalOptions
from evals.partial_results import PartialResults, PartialResultsError
from rollout.engine import EngineError, NanError
from rollout.files.exclusive import OccupiedError
from rollout.models import EMBEDDED_DIR
from rollout.types import RolloutGroup
from tests.helpers.scripted_evaluation import (
    Unhurried,
    measure,
    options_for,
    scripted,
    timeless,
)

pytestmark = pytest.mark.usefixtures("one_grader")


def test_an_interrupted_evaluation_goes_on_from_what_is_kept(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds if its batches were sampled side by side."""
    monkeypatch.setattr("evals.evaluate.completions_at_once", lambda _: 10**6)
    options = options_for(tmp_path, adapter)
    measure(replace(options, output=tmp_path / "whole.json"), scripted())
    with pytest.raises(KeyboardInterrupt):
        measure(options, Unhurried(breaks_after=5, rates=scripted().rates))
    engine = scripted()
    measure(options, engine)
    assert 0 < engine.calls < 8
    assert timeless(tmp_path / "out.json") == timeless(tmp_path / "whole.json")


@pytest.mark.parametrize("calls", [1, 5])
def test_an_interrupted_evaluation_ends_like_one_that_was_not(calls: int, tmp_path: Path, adapter: Path) -> None:
    """60 problems make four batches of at most sixteen for each of the two policies."""
    whole, engine = scripted(), scripted(breaks_after=calls)
    measure(options_for(tmp_path, adapter, output=tmp_path / "whole.json"), whole)
    options = options_for(tmp_path, adapter)
    with pytest.raises(KeyboardInterrupt):
        measure(options, engine)
    assert not options.output.exists()
    # A crash in the middle of a line.
    with (tmp_path / "out.partial.jsonl").open("a") as file:
        file.write('{"suite": "held_out", "contender": "ba')
    engine.breaks_after = None
    text = measure(options, engine)
    assert f"{16 * calls if calls < 4 else 76} of 120 problems are finished already" in text
    assert (engine.asked, engine.calls) == (whole.asked, whole.calls)
    assert whole.calls == 8
    assert timeless(options.output) == timeless(tmp_path / "whole.json")


def test_an_evaluation_goes_on_with_its_own_settings_alone(tmp_path: Path, adapter: Path) -> None:
    options = options_for(tmp_path, adapter)
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=2))
    with pytest.raises(PartialResultsError, match=r"seed was 0 and is 1.*--overwrite"):
        measure(replace(options, seed=1), scripted())
    with pytest.raises(PartialResultsError, match=r"suites.held_out.sampling.temperature was 0.6 and is 1.0"):
        measure(replace(options, temperature=1.0), scripted())
    fresh = scripted()
    measure(replace(options, seed=1, overwrite=True), fresh)
    assert len(fresh.asked) == 120
    with pytest.raises(ValueError, match="already exists"):
        measure(options, scripted())


@pytest.mark.parametrize("changed", ["order", "system turn"])
def test_an_evaluation_goes_on_with_the_same_rows_alone(changed: str, tmp_path: Path, adapter: Path) -> None:
    """Rows without ids are known by their line: of a file that was sorted meanwhile, answers to other problems were
    taken as finished."""
    asked = [{"role": "system", "content": "Add."}, {"role": "user", "content": "0+1=?"}]
    rows: list[dict[str, Any]] = [{"problem": asked, "answer": 1}]
    rows += [{"problem": f"{number}+1=?", "answer": number + 1} for number in range(1, 40)]
    suite = tmp_path / "sums.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = options_for(tmp_path, adapter, suites=(str(suite),))
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=2))
    asked[0]["content"] = "Subtract." if changed == "system turn" else "Add."
    rows = [rows[0], *rows[:0:-1]] if changed == "order" else rows
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(PartialResultsError, match=r"suites\.sums\.data\.asked_sha256 was"):
        measure(options, scripted())


def test_an_evaluation_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It had no digest of what is asked; the digest of the problems still has to be the same."""
    data = {"sha256": "a"}
    for now in (data, data | {"asked_sha256": "b"}):
        with closing(PartialResults(tmp_path / "out.json", {"data": now})) as partial:
            partial.begin(overwrite=False)
    for now in ({"sha256": "c", "asked_sha256": "b"}, {"sha256": "a", "asked_sha256": "d"}):
        with pytest.raises(PartialResultsError, match="sha256 was"):
            PartialResults(tmp_path / "out.json", {"data": now}).read()


def test_an_evaluation_that_replaces_one_goes_on_too(tmp_path: Path, adapter: Path) -> None:
    """The command with `--overwrite` used to start over each time, and without it an interrupted evaluation was
    refused."""
    options = options_for(tmp_path, adapter)
    measure(options, scripted())
    anew = replace(options, seed=1, overwrite=True)
    assert how_to_continue(anew) == "run the same command to continue"
    with pytest.raises(KeyboardInterrupt):
        measure(anew, scripted(breaks_after=5))
    assert json.loads(options.output.read_text())["settings"]["seed"] == 0
    assert how_to_continue(anew) == "run the same command without --overwrite to continue"
    assert f"replaces {options.output}" in measure(replace(anew, overwrite=False), rest := scripted())
    assert rest.calls == 3
    assert json.loads(options.output.read_text())["settings"]["seed"] == 1


def test_two_processes_do_not_finish_one_evaluation(tmp_path: Path, adapter: Path) -> None:
    """The first one to finish used to remove the other's partial results."""
    options = options_for(tmp_path, adapter)
    with closing(PartialResults(options.output, {"seed": 0})) as other:
        other.begin(overwrite=False)
        for overwrite in (False, True):
            with pytest.raises(OccupiedError, match=r"another process is at work on .*out\.json"):
                measure(replace(options, overwrite=overwrite), scripted())
    measure(replace(options, overwrite=True), scripted())
    assert not [*tmp_path.glob("out.partial*")]


def test_of_two_processes_that_begin_at_once_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither used to find results of the other, and both wrote."""
    one, other = (PartialResults(tmp_path / "out.json", {"seed": 0}) for _ in range(2))

    def written_meanwhile(*_: Any) -> None:
        monkeypatch.undo()
        with pytest.raises(OccupiedError, match="another process is at work"):
            other.begin(overwrite=False)

    monkeypatch.setattr("evals.partial_results.write_synced", written_meanwhile)
    with closing(one):
        one.begin(overwrite=False)
    assert not [*tmp_path.iterdir()]


def test_an_evaluation_goes_on_with_the_same_weights_alone(tmp_path: Path, adapter: Path) -> None:
    """A name such as `adapters/latest` may be a different model an hour later."""
    model = tmp_path / "embedded"
    shutil.copytree(EMBEDDED_DIR, model)
    options = options_for(tmp_path, adapter, model=str(model), adapters=())
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=2))
    (weights,) = model.glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(PartialResultsError, match=r"model\.weights was"):
        measure(options, scripted())


def test_nothing_is_started_when_all_is_finished(tmp_path: Path, adapter: Path) -> None:
    """The evaluation was interrupted after the last batch, before the report."""
    options, engine = options_for(tmp_path, adapter), scripted()
    measure(replace(options, output=tmp_path / "first.json"), engine)
    partial = PartialResults(options.output, {})
    with pytest.raises(KeyboardInterrupt):
        measure(options, scripted(breaks_after=7))
    rest = scripted()
    measure(options, rest)
    assert {problem for _, problem in rest.asked} < {problem for _, problem in engine.asked}
    assert not partial.path.exists()


def test_asked_to_stop_the_command_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to stop in the middle of a batch that takes a minute; the same command then continues."""
    engine, handlers = scripted(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    generate = engine.generate

    def slow(*arguments: Any) -> list[RolloutGroup]:
        if engine.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return generate(*arguments)

    monkeypatch.setattr(engine, "generate", slow)
    monkeypatch.setattr("rollout.vllm.start_engine", engine.start)
    output = tmp_path / "out.json"
    command = ["--model", "embedded", "--suite", "held_out", "--limit", "60", "--batch", "16", "--output", str(output)]
    start = time.monotonic()
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, time.monotonic() - start < 40) == (143, True)
    assert "stopped; run the same command to continue" in answer.stderr
    assert len((tmp_path / "out.partial.jsonl").read_text().splitlines()) == 1 + 2 * 16
    monkeypatch.setattr(engine, "generate", generate)
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, len(engine.asked), output.is_file()) == (0, 60, True)
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_an_evaluation_goes_on_where_nobody_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `> log.txt` on a full disk, or `| head`, hours of sampling would end without a file."""
    monkeypatch.setattr("rollout.vllm.start_engine", scripted().start)
    output = tmp_path / "out.json"
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        command = ["--model", "embedded", "--suite", "held_out", "--limit", "4", "--output", str(output)]
        app(command, standalone_mode=False)
        assert Path(f"/proc/self/fd/{full.fileno()}").readlink() == Path(os.devnull)
    assert output.is_file()


def test_what_a_full_disk_leaves_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error named no file, and did not say that anything was kept."""
    monkeypatch.setattr("rollout.vllm.start_engine", scripted().start)
    fsync, calls = os.fsync, itertools.count(1)

    def fills(descriptor: int) -> None:
        if next(calls) > 3:  # the file is begun with two, and the first batch takes one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    output = tmp_path / "out.json"
    command = ["--model", "embedded", "--suite", "held_out", "--limit", "60", "--batch", "16", "--output", str(output)]
    monkeypatch.setattr(os, "fsync", fills)
    answer = CliRunner().invoke(app, command)
    monkeypatch.setattr(os, "fsync", fsync)
    assert answer.exit_code == 1
    said = f"error: [Errno 28] No space left on device: '{tmp_path / 'out.partial.jsonl'}'\nRun the same command to"
    assert said in answer.stderr
    assert CliRunner().invoke(app, command).exit_code == 0
    assert output.is_file()


def test_what_would_fail_again_is_not_told_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler may have lost a process or its memory to something else; NaN comes again."""
    command = ["--model", "embedded", "--suite", "held_out", "--output", str(tmp_path / "out.json")]
    for error, told in (
        (EngineError("vLLM failed"), "error: vLLM failed\nRun the same command to continue.\n"),
        (NanError("it computed NaN"), "error: it computed NaN\n"),
    ):

        def fail(_: EvalOptions, error: EngineError = error) -> None:
            raise error

        monkeypatch.setattr("evals.__main__.start", fail)
        answer = CliRunner().invoke(app, command)
        assert (answer.exit_code, answer.stderr) == (1, told)

    def missing(_: EvalOptions) -> None:
        raise FileNotFoundError("no such model")

    (tmp_path / "out.partial.jsonl").write_text("", encoding="utf-8")  # of an earlier attempt
    monkeypatch.setattr("evals.__main__.start", missing)
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, answer.stderr) == (2, "error: no such model\n")
