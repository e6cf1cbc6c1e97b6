"""`python -m rewards.check` and `python -m rewards.audit` on small files whose findings are known."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from datafiles.problems import Columns
from rewards import audit, check
from rewards.command import write_rows
from rewards.second_opinion import understands

pytestmark = pytest.mark.usefixtures("warm_graders")

RUNNER = CliRunner()
LONG = "A train leaves the station at noon and travels east at a constant speed of {} miles per hour until it stops"
OTHER = (
    "Find the number of ways to colour the vertices of a regular polygon with {} sides up to rotation and reflection"
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def problem(identity: str, text: Any, answer: str = "5") -> dict[str, Any]:
    return {"id": identity, "problem": text, "answer": answer}


def test_check_finds_bad_references_repeats_and_overlap(tmp_path: Path) -> None:
    data = write(
        tmp_path / "train.jsonl",
        [
            problem("a", LONG.format(60)),
            problem("b", "What is 2 + 3?", ""),
            problem("c", "what is  2+3 ?", "nan"),
            problem("d", "Name the cardinal.", r"\aleph_0 \otimes 1"),
            problem("f", [{"role": "user", "content": "2"}, {"role": "user", "content": "And the half of it?"}]),
            problem("e", OTHER.format(7), r"\frac{1}{2}"),
        ],
    )
    other = write(
        tmp_path / "eval.jsonl", [problem("x", "Hello. " + LONG.format(60) + " again"), problem("y", "Else?")]
    )
    report = tmp_path / "report.jsonl"
    result = RUNNER.invoke(check.app, [str(data), "--against", str(other), "--output", str(report), "--workers", "1"])
    assert result.exit_code == 1, result.output
    found = {(row["kind"], row["id"]) for row in read(report)}
    assert found == {
        ("ungradable", "b"), ("ungradable", "c"), ("text_only", "b"), ("text_only", "c"), ("text_only", "d"),
        ("repeat", "c"), ("overlap", "a"), ("left_out", "f"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "understood"),
    [
        (r"\frac12", 1.0), ("7/0", 0.0), (r"\tan 90^\circ", 0.0), ("?", 0.0), ("x+1", 1.0),
        ("['1', '1.0']", 1.0), ("['1', '2']", 0.0),
        ("They sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 1.0), (r"So $x$ is $\boxed{\frac12}$.", 1.0),
    ],
)  # fmt: skip
def test_what_only_its_own_text_equals_is_reported(reference: str, understood: float) -> None:
    assert understands("", reference, "") == understood


def test_check_compares_with_what_an_evaluation_reads(tmp_path: Path) -> None:
    """If a directory also has a training set, only its test set is compared: the benchmark's training set is no
    leak."""
    (tmp_path / "bench").mkdir()
    write(tmp_path / "bench" / "train.jsonl", [problem("a", LONG.format(60))])
    write(tmp_path / "bench" / "test.jsonl", [problem("b", OTHER.format(7))])
    rows, _ = check.load(write(tmp_path / "mine.jsonl", [problem("m", OTHER.format(7))]), Columns(), "DATA")
    assert [found.id for found in check.overlaps(rows, tmp_path / "bench", Columns())] == ["m"]


def test_check_of_a_clean_file_succeeds(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", [problem("a", LONG.format(60)), problem("e", OTHER.format(7), r"\frac12")])
    result = RUNNER.invoke(check.app, [str(data), "--workers", "1"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"id": "a", "problem": "?", "target": "5"}\n',
            "no column 'answer'; its columns are id, problem, target: say which it is with --answer=target",
        ),
        ("not json\n", "no usable problem: not JSON"),
        ("[1]\n", "no usable problem: not a JSON object"),
    ],
)
def test_check_names_the_line_that_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    result = RUNNER.invoke(check.app, [str(path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_check_of_a_missing_file(tmp_path: Path) -> None:
    result = RUNNER.invoke(check.app, [str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2
    assert "no such file" in " ".join(result.output.split())


def rollout(identity: str, completion: str, reference: str, verdict: str) -> dict[str, Any]:
    return {
        "completion": completion, "reference": reference, "verdict": verdict, "reward": 0.0, "step": 3,
        "problem_id": identity, "problem": "?", "sample": 1,
    }  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_audit_sorts_disagreements(tmp_path: Path, compressed: bool) -> None:
    rows = [
        rollout("agree", "\\boxed{2\\sqrt{3}}", "\\sqrt{12}", "correct"),
        rollout("rounded", "\\boxed{0.333}", "\\frac{1}{3}", "incorrect"),
        rollout("unboxed", "So it is\n5", "5", "no_answer"),
        rollout("changed", "\\boxed{5}", "5", "incorrect"),
        rollout("ours", "\\boxed{90 \\text{ minutes}}", "1.5 \\text{ hours}", "correct"),
    ]
    path = tmp_path / ("rollouts.jsonl.gz" if compressed else "rollouts.jsonl")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if compressed:
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    report = tmp_path / "report.jsonl"
    result = RUNNER.invoke(audit.app, [str(path), "--output", str(report), "--workers", "1"])
    assert result.exit_code == 0, result.output
    found = {row["problem_id"]: row["kind"] for row in read(report)}
    assert found == {
        "rounded": "false_negative?", "unboxed": "false_negative?", "changed": "verdict_changed",
        "ours": "false_positive?",
    }  # fmt: skip


def test_audit_takes_runs_and_files(tmp_path: Path) -> None:
    """A run, which means its rollouts, and a file of another run, each with its own answer forms."""
    for run, said in (("one", "\\boxed{5}"), ("two", "#### 5")):
        (tmp_path / run / "rollouts").mkdir(parents=True)
        for step in (1, 2):
            row = rollout(f"{run}{step}", said, "5", "correct" if step == 1 else "incorrect")
            write(tmp_path / run / "rollouts" / f"step00000{step}.jsonl", [row])
        (tmp_path / run / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "two" / "config.yaml").write_text("rewards: {answer_forms: [gsm8k_hashes]}")
    report = tmp_path / "report.jsonl"
    file = tmp_path / "two" / "rollouts" / "step000002.jsonl"
    arguments = [str(tmp_path / "one"), str(file), str(file), "--output", str(report), "--workers", "1"]
    result = RUNNER.invoke(audit.app, arguments)
    assert result.exit_code == 0, result.output
    assert "3 files: 3 completions" in result.output
    assert [(row["problem_id"], row["kind"], Path(row["file"]).name) for row in read(report)] == [
        ("one2", "verdict_changed", "step000002.jsonl"), ("two2", "verdict_changed", "step000002.jsonl"),
    ]  # fmt: skip
    (tmp_path / "none").mkdir()
    empty = RUNNER.invoke(audit.app, [str(tmp_path / "none")])
    assert empty.exit_code == 2
    assert "holds no .jsonl or .jsonl.gz file: give a run" in " ".join(empty.output.split())


def test_audit_looks_for_answers_where_the_run_did(tmp_path: Path) -> None:
    """With other answer forms every recorded verdict would seem to have changed."""
    run = tmp_path / "run"
    rollouts = run / "rollouts" / "step000001.jsonl.gz"
    assert audit.forms_of(rollouts) == ("boxed",)
    run.mkdir()
    (run / "config.yaml").write_text("rewards: {answer_forms: [gsm8k_hashes, boxed]}")
    assert audit.forms_of(rollouts) == ("gsm8k_hashes", "boxed")
    (run / "config.yaml").write_text("rewards: {}")
    assert audit.forms_of(rollouts) == ("boxed",)


def test_audit_explains_bad_input(tmp_path: Path) -> None:
    missing = RUNNER.invoke(audit.app, [str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2
    (tmp_path / "a [long] and unfinished name.jsonl").touch()
    empty = RUNNER.invoke(audit.app, [str(tmp_path / "a [long] and unfinished name.jsonl")])
    told = f"error: {tmp_path}/a [long] and unfinished name.jsonl holds no rows\n"
    assert (empty.exit_code, empty.stdout, empty.stderr) == (2, "", told)
    path = write(tmp_path / "r.jsonl", [{"completion": "x"}])
    assert "no field 'reference'" in " ".join(RUNNER.invoke(audit.app, [str(path)]).output.split())
    path.write_bytes(gzip.compress(path.read_bytes())[:12])
    assert "cannot be read (a damaged gzip file: " in RUNNER.invoke(audit.app, [str(path)]).output
    wrong = RUNNER.invoke(audit.app, [str(path), "--form", "guess"])
    assert wrong.exit_code == 2
    assert "--form is 'guess': known are boxed, answer_is, gsm8k_hashes" in wrong.output
    assert "validation error" not in wrong.output


@pytest.mark.parametrize("command", [check.app, audit.app])
def test_a_place_that_takes_no_file_is_reported_before_grading(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = write(tmp_path / "data.jsonl", [{"problem": "1", "answer": "1"}])
    told = RUNNER.invoke(command, [str(data), "--output", str(tmp_path / "file" / "report.jsonl")])
    assert told.exit_code == 2
    assert "cannot be written" in " ".join(told.output.split())
    unreadable = RUNNER.invoke(command, ["/proc/self/mem"])  # as a damaged disk
    assert (unreadable.exit_code, unreadable.exception.__class__) == (1, SystemExit)


def test_what_was_made_meanwhile_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that appeared after the command began is not replaced, and a file that cannot be written completely is
    removed."""
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    mine.write_text("mine")

    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, said in ((mine, "File exists"), (other, "No space left on device")):
        with pytest.raises(typer.Exit):
            write_rows(place, rows())
        assert capsys.readouterr().err == f"error: --output: {place} cannot be written: {said}\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_reports_directory_is_made(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"problem": "1+1=?", "answer": "2"}])
    report = tmp_path / "new" / "report.jsonl"
    assert RUNNER.invoke(check.app, [str(data), "--output", str(report), "--workers", "1"]).exit_code == 0
    assert report.read_text() == ""


@pytest.mark.parametrize("command", [check.app, audit.app])
def test_a_check_goes_on_where_nobody_hears_it(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind `| head` it ended before its findings were written; a full disk behind `>` was a traceback."""
    row = {**problem("a", "What is 2 + 3?"), "completion": "\\boxed{5}", "reference": "5", "verdict": "correct"}
    data = write(tmp_path / "train.jsonl", [row])
    read_end, write_end = os.pipe()
    os.close(read_end)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor, code in ((write_end, 0), (full, 1)):
        report = tmp_path / f"{code}.jsonl"
        with os.fdopen(descriptor, "w", buffering=1) as stream:
            monkeypatch.setattr("sys.stdout", stream)
            with pytest.raises(SystemExit) as ended:
                command([str(data), "--output", str(report), "--workers", "1"])
        assert (ended.value.code, report.is_file()) == (code, True)


@pytest.mark.parametrize("command", [check.app, audit.app])
def test_help(command: Any) -> None:
    assert RUNNER.invoke(command, ["--help"]).exit_code == 0


def test_check_counts_what_is_different_and_what_training_drops(tmp_path: Path) -> None:
    sums = [problem(f"{k}-{n}", f"What is {n} +  1?", str(n + 1)) for k in range(4) for n in range(3)]
    odd = [
        problem("0-0", "What is 5 + 1?", "6"),
        {"problem": "What is 6 + 1?", "answer": 7},
        problem("null", "What is 7 + 1?") | {"problem": None},
        problem("list", "What is 8 + 1?") | {"problem": ["?"]},
        problem("none", "What is 9 + 1?") | {"answer": None},
    ]
    report = tmp_path / "report.jsonl"
    data = write(tmp_path / "train.jsonl", [*sums, *odd])
    result = RUNNER.invoke(check.app, [str(data), "--output", str(report), "--workers", "1"])
    assert result.exit_code == 1, result.output
    assert "5 different problems of 14" in result.output
    found = {row["id"]: row["what"] for row in read(report) if row["kind"] == "unusable"}
    assert found == {
        "train.jsonl:13": "id seen before",
        "train.jsonl:15": "no problem",
        "train.jsonl:16": "problem is a list, not a text",
    }
    assert [row["id"] for row in read(report) if row["kind"] == "ungradable"] == ["none"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"problem": "?", "answer": "5"}\n{"problem": "caf\xe9", "answer": "5"}', "line 2: byte 0xe9"),
        ('{"id": 1, "problem": "?", "answer": "5"}\n'.encode("utf-16"), "UTF-16"),
        (b'{"id": 1, "problem": null, "answer": "5"}\n', "no usable problem: no problem"),
        (b"\n\n", "no usable problem: it is empty"),
        (b"PAR1\x15\x04", "bad.jsonl cannot be read as parquet"),
        (b'[{"problem": "1+1"}', "line 1: not JSON"),
        (b"SQLite format 3", "is an SQLite database"),
    ],
)  # fmt: skip
def test_check_reads_utf_8_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    result = RUNNER.invoke(check.app, [str(path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_check_reads_a_byte_order_mark_and_gzip_by_whatever_name(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + json.dumps(problem("a", LONG.format(60))).encode() + b"\r\n"
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(text))
    rows, found = check.load(tmp_path / "packed.jsonl", Columns(), "DATA")
    assert ([row.id for row in rows], found) == (["a"], [])


def test_check_reads_what_training_reads(tmp_path: Path) -> None:
    """verl's rows without an id: a chat, and the answer inside a mapping."""
    rows = [
        {
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": text}],
            "reward_model": {"style": "rule", "ground_truth": answer},
        }
        for text, answer in ((LONG.format(60), "5"), (OTHER.format(7), "x + $"), (OTHER.format(7), "x + $"))
    ]
    data = tmp_path / "train.json"
    data.write_text(json.dumps(rows))
    table = tmp_path / "eval.csv"
    table.write_text(f'problem,answer\n"{LONG.format(60)}",5\n')
    arguments = [str(data), "--problem", "prompt", "--answer", "reward_model", "--against", str(table), "--workers=1"]
    result = RUNNER.invoke(check.app, arguments)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "2 different problems of 3" in said
    assert "train.json-1: exact with eval.csv:eval.csv-2" in said
