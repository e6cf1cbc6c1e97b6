"""Malformed data files: each is reported with what is wrong and the way out, and nothing is guessed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from datafiles.formats import check_file
from datafiles.text import TextFileError, first_line, json_lines, read_text, text_lines
from rewards.records import BadRecord, read_rows
from rl_engine.config.sft import SftConfig
from rl_engine.sft.examples import load_examples
from rollout.config import ColumnsConfig, DataConfig
from rollout.models import locate_model, read_tokenizer
from rollout.prompts.problems import check_source, first_problem, load_problems

ROW = '{"problem": "1+1=?", "answer": "2"}\n'


def load(path: Path, **settings: Any) -> Any:
    return load_problems(DataConfig(source="jsonl", path=str(path), **settings), split="train", seed=0)


def test_a_byte_order_mark_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ROW.encode() + b"\r\n" + ROW.replace("1+1", "2+0").encode())
    assert [problem.text for problem in load(path).problems] == ["1+1=?", "2+0=?"]
    assert read_text(path).startswith("{")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.encode() * 200 + b'{"problem": "caf\xe9"}\n', "rows.jsonl, line 201: byte 0xe9 is not UTF-8"),
        (ROW.encode("utf-16"), "rows.jsonl is UTF-16 text: `iconv -f UTF-16 -t UTF-8"),
        (ROW.encode("utf-16-le"), "rows.jsonl is UTF-16LE text: `iconv -f UTF-16LE -t UTF-8"),
        (ROW.encode("utf-16-be"), "rows.jsonl is UTF-16BE text"),
        (ROW.encode("utf-32-le"), "rows.jsonl is UTF-32LE text"),
        (
            gzip.compress(ROW.encode("utf-16"), mtime=0),
            r"UTF-16 text: `gunzip -c \S+/rows.jsonl \| iconv -f UTF-16 -t UTF-8`",
        ),
        (b"\x93NUMPY\x01\x00v\x00{", "line 1: a zero byte, which no text has: it is a file of another kind"),
        (ROW.encode("utf-32"), "rows.jsonl is UTF-32 text"),
    ],
)
def test_another_encoding_is_refused_by_line_or_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(TextFileError, match=message):
        list(text_lines(path))
    with pytest.raises(TextFileError, match=message):
        load(path)


def test_what_the_first_bytes_say_comes_before_torch(tmp_path: Path) -> None:
    for content, message in ((ROW.encode("utf-16"), "is UTF-16 text"), (b"", "is empty$")):
        (tmp_path / "rows.jsonl").write_bytes(content)
        with pytest.raises(TextFileError, match=message):
            check_source(DataConfig(source="file", path=str(tmp_path / "rows.jsonl")))


def without_rows(path: Path) -> None:
    table = pyarrow.table({"problem": ["1"], "answer": ["1"]}).slice(0, 0)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        datasets.Dataset(table).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((f"rows.{ending}", b"", "is empty$") for ending in ("jsonl", "json", "csv", "tsv", "txt")),
        ("rows.jsonl", b"\xef\xbb\xbf", "is empty$"),
        ("rows.csv.gz", gzip.compress(b"", mtime=0), "is empty$"),
        *((f"rows.{ending}", b"", "has 0 bytes, so writing or copying") for ending in ("parquet", "arrow")),
        ("rows.json", b"[]", "has no usable problem: it is empty$"),
        ("rows.csv", b"problem,answer\n", "has no usable problem: it is empty$"),
        *((name, None, "has no usable problem: it is empty$") for name in ("rows.parquet", "rows.arrow", "saved")),
        (
            "rows.jsonl",
            b"\n{'problem': 1}\n",
            r"1 × not JSON \(rows.jsonl:2\); JSON Lines, a JSON array, CSV, .* is read",
        ),
        (
            "rows.csv",
            b"1+1=?\n2+2=?\n",
            "its columns are 1\\+1=\\?, by its first line: .* a line of names .*; cells end",
        ),
        ("rows.csv", b"1+1=?,2\n2+2=?,4\n", "are 1\\+1=\\?, 2, by its first line: .* a line of names above the rows"),
    ],
)
def test_a_file_without_rows_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """In training with rewards and in supervised training."""
    path = tmp_path / name
    without_rows(path) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data.path: {path} (?:{message}|.*{message})") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    config = SftConfig.model_validate(
        {"output_dir": "x", "model": {"name": "embedded"}, "optim": {"lr": 1e-3}, "train": {"steps": 2}}
        | {"data": {"source": "file", "path": str(path)}, "prompt": {"template": "plain"}}
    )
    with pytest.raises(ValueError, match=rf"^data.path: {path} ") as refused:
        load_examples(config, read_tokenizer(locate_model("embedded"), None))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("rows.parquet", b"PAR1....", ["cannot be read as parquet"]),
        ("rows.jsonl", b"ARROW1....", ["cannot be read as arrow"]),
        ("rows.json", f"[{ROW.strip()}".encode(), ["line 1: not JSON"]),
        ("rows.json", b"[" * 100_000, ["nested too deeply"]),
        ("rows.csv", b'problem,answer\n"1+1,2\n', ["line 2: unexpected end of data"]),
        ("rows.csv", b"problem,answer,answer\n1+1,2,3\n", ["has two columns 'answer': rename one of them"]),
        ("rows.jsonl.gz", gzip.compress(ROW.encode(), mtime=0)[:-9], ["a damaged gzip file"]),
        ("rows.jsonl.gz", b"\x1f\x8b....", ["a damaged gzip file"]),
        ("rows.parquet.gz", gzip.compress(b"PAR1....", mtime=0), ["Parquet in gzip", "gunzip -k"]),
        ("rows.jsonl.zst", b"(\xb5/\xfd....", ["`zstd -d` unpacks it"]),
        # The names in an archive come first, and what says that it is one after them. `MATH.tar` is one.
        ("rows.tar.gz", gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar", mtime=0), ["`tar -xf` unpacks it"]),
        ("rows.xlsx", b"PK\x03\x04....", ["an Excel sheet"]),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    ],
)
def test_another_format_is_named_with_the_way_out(
    tmp_path: Path, name: str, content: bytes, messages: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextFileError) as refused:
        load(path)
    assert [message for message in ("data.path: ", *messages) if message not in str(refused.value)] == []


TWICE = '{"problem": "1+1=?", "answer": "2", "answer": "3"}\n'
INSIDE = '{"problem": "1+2=?", "answer": {"ground_truth": 3, "ground_truth": 4}}\n'


def test_a_row_with_a_key_twice_is_dropped_whichever_key_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW + TWICE + INSIDE)
    loaded = load(path)
    assert [problem.answer for problem in loaded.problems] == ["2"]
    assert loaded.dropped.examples == {
        "the key 'answer' twice": "rows.jsonl:2",
        "the key 'ground_truth' twice": "rows.jsonl:3",
    }
    with pytest.raises(BadRecord, match="line 2: the key 'answer' twice"):
        list(read_rows(path, required=("problem",)))


@pytest.mark.parametrize("text", [f"[{TWICE}, {ROW}]", f'{{\n"train": [{ROW}, {INSIDE}]}}'])
def test_a_document_with_a_key_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(TextFileError, match=r"rows.json, an object has the key '\w+' twice: keep one of them"):
        load(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], "cannot be read as saved"),
        (["notes.md", "train.txt"], "neither of save_to_disk nor of data files: it holds notes.md, train.txt"),
        (["test.jsonl", "dev.jsonl"], "no split 'train': it has dev, test; give one of its files, or data.split"),
        (["data/train.jsonl", "README.md"], "it holds README.md, data; give .*/data$"),
        ([], "it is empty"),
    ],
)
def test_a_directory_is_named_with_what_it_holds(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROW if name.endswith(".jsonl") else "")
    with pytest.raises(TextFileError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"question": "1+1", "final_answer": "2"},
            {},
            "no column 'problem' and no column 'answer'; its columns are question, final_answer: "
            "say which it is with data.columns.problem=question data.columns.answer=final_answer",
        ),
        (
            {"ID": "2024-I-1", "Problem": "1+1", "Solution": "…", "Answer": 2},
            {},
            "with data.columns.problem=Problem data.columns.answer=Answer$",
        ),
        (
            {"prompt": "user: 1+1", "messages": [{"role": "user", "content": "1+1"}], "target": {"answer": 2}},
            {},
            "with data.columns.problem=messages data.columns.answer=target.answer$",
        ),
        ({"problem": "1+1", "loesung": "2"}, {}, "no column 'answer'; .*data.columns.answer=NAME"),
        ({"problem": "1+1", "answer": "2"}, {"problem": "frage"}, "no column 'frage'; its columns are problem, answer"),
        ({"data": [{"problem": "1+1"}]}, {}, "no column 'answer'; its columns are problem: say"),
        ({"data": [{"role": "user", "content": "1+1"}]}, {}, "its columns are data"),
    ],
)
def test_other_columns_are_named_with_the_key_that_maps_them(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        load(path, columns=ColumnsConfig(**columns))


def test_a_named_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    """Otherwise a mistyped name for the level or id column would silently read nothing. A column that only some rows
    have is read from those."""
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW + json.dumps({"problem": "?", "answer": 2, "meta": {"level": 3}}) + "\n")
    assert [one.level for one in load(path, columns=ColumnsConfig(level="meta.level")).problems] == ["", "3"]
    with pytest.raises(
        ValueError, match=r"^data.columns.level is 'difficulty', and no row of .* has such a column; its"
    ):
        load(path, columns=ColumnsConfig(level="difficulty"))


def test_rows_of_lists_are_not_trained_on_as_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = {"problem": ["1+1=?"], "answer": "2"}
    path.write_text(json.dumps(chat) + "\n" + ROW + json.dumps({"problem": "?", "answer": {"value": 2}}) + "\n")
    loaded = load(path)
    assert len(loaded.problems) == 1
    assert loaded.dropped.counts == {"problem is a list, not a text": 1, "answer is a mapping, not a text": 1}
    found = first_problem(DataConfig(source="jsonl", path=str(path)))
    assert found is not None
    assert found.text == "1+1=?"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("no room\nHint: make some"), "no room"),
        (RuntimeError("\n  \n  no room  \n"), "no room"),
        (RuntimeError(" \n"), "RuntimeError"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["advice", "blank lines", "blank", "nothing"],
)
def test_an_error_is_a_line_even_where_it_says_nothing(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (b'{"a": 1}\n\n{"a": 2}\n \n', [{"a": 1}, {"a": 2}]),
        (b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (gzip.compress(b'{"a": 1}\n\n', mtime=0), [{"a": 1}]),
        (b"", []),
        (b'{"a": 1}\n{"a', "rows.jsonl cannot be read (line 2 is not JSON: "),
        (b'\n{"a\n{"a": 1}\n', "rows.jsonl cannot be read (line 2 is not JSON: "),
        (b"\0\0\n", "rows.jsonl cannot be read (line 1 is not JSON: "),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "rows.jsonl cannot be read (a damaged gzip file: "),
    ],
)
def test_our_own_lines_are_read_or_named(tmp_path: Path, content: bytes, held: Any) -> None:
    """Traces of an editor are skipped. A line that a crash cut short is skipped only in files that grow line by
    line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    if isinstance(held, list):
        assert [*json_lines(path)] == held
    else:
        with pytest.raises(ValueError, match=re.escape(held)):
            list(json_lines(path))
    path.write_bytes(b'{"a": 1}\n{"a": \xff')
    assert [*json_lines(path, grows=True)] == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("\ufeffmodel:\r\n  name: embedded\r\n", "'model:'"),
        ("# Problems\n\nSee {here}.\n", "'# Problems'"),
        ("import this\n", "'import this'"),
    ],
)
def test_a_text_without_rows_is_refused_before_it_is_read(text: str, begins: str, tmp_path: Path) -> None:
    """A configuration given as data was reported only after everything had been loaded."""
    path = tmp_path / "data.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TextFileError, match=rf"^data\.path: {path} is not a file of rows \(it begins {begins}\); JSON"):
        check_file(path, "data.path")
    path.write_text(f'{text}{{"problem": "1+1", "answer": "2"}}\n', encoding="utf-8")
    check_file(path, "data.path")  # such lines are dropped and counted
