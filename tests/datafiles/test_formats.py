"""One table in every common format: the same problems come out, in the same order."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from datafiles.dropped import Dropped
from datafiles.rows import rows_of
from evals.suites import find_suite, load_suite
from rl_engine.config.sft import SftDataConfig
from rl_engine.sft.conversations import streams
from rollout.config import ColumnsConfig, DataConfig
from rollout.prompts.problems import load_problems

ROWS = [
    {"id": f"r{n}", "problem": f'say "{n}", then\nstop; 1+{n}=?', "answer": f"0{n}", "level": str(n), "note": f"é{n}"}
    for n in range(4)
]


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def array(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def packed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_packed(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_packed


def csv_with(mark: str, end: str = "\r\n") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        cells = [[*ROWS[0]], *([*row.values()] for row in ROWS)]
        quoted = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        path.write_text(end.join(quoted) + end, newline="")

    return write


def table() -> Any:
    return datasets.Dataset.from_list(ROWS)


def arrow_stream(path: Path) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table().data.schema) as writer:
        writer.write_table(table().data.table)


def arrow_file(path: Path) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table().data.schema) as writer:
        writer.write_table(table().data.table)


def told_by_excel(path: Path) -> None:
    csv_with("|")(path)
    path.write_text("sep=|\r\n" + path.read_text(), newline="")


def indented(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))


def old_mac(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The file with bare carriage returns as line ends."""

    def write_so(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))

    return write_so


def marked(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The file with a byte-order mark."""

    def write_so(path: Path) -> None:
        write(path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return write_so


def lines_of_two_systems(path: Path) -> None:
    lines(path)
    first, second, *rest = path.read_bytes().splitlines()
    path.write_bytes(first + b"\r" + second + b"\r\n" + b"\n".join(rest))


def first_row_group_empty(path: Path) -> None:
    import pyarrow.parquet as pq

    whole = table().data.table
    with pq.ParquetWriter(path, whole.schema) as writer:
        writer.write_table(whole.slice(0, 0))
        writer.write_table(whole)


def shards_without_rows(path: Path) -> None:
    """A split in which some shards have no rows."""
    shards(path)
    for name in ("a.parquet", "z.parquet"):
        datasets.Dataset.from_list(ROWS).select([]).to_parquet(path / name)


def a_split_without_rows(path: Path) -> None:
    datasets.DatasetDict(train=table(), test=table(), dev=table().select([])).save_to_disk(path)


def shards(path: Path, name: str = "part-{part}.parquet") -> None:
    path.mkdir(exist_ok=True)
    (path / "README.md").write_text("# Mine")
    for part in (0, 1):
        datasets.Dataset.from_list(ROWS[2 * part : 2 * part + 2]).to_parquet(path / name.format(part=part))


def shards_of_splits(path: Path) -> None:
    for split in ("train", "test"):
        shards(path, f"{split}-{{part:05}}-of-00002.parquet")
    shards(path, "validation-{part:05}-of-00002.parquet")


def packed_shards(path: Path) -> None:
    path.mkdir()
    for part in (0, 1):
        text = "".join(json.dumps(row) + "\n" for row in ROWS[2 * part : 2 * part + 2])
        (path / f"{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


FORMATS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lines,
    "rows.jsonl.gz": packed(lines),
    "rows.json": array,
    "array.jsonl": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=1)),
    "array.json.gz": packed(array),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=1)),
    "wrapped_in_a_line.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "wrapped_in_a_line.jsonl": lambda path: path.write_text(json.dumps({"rows": ROWS}) + "\n"),
    "objects.json": indented,
    "told_by_excel.csv": told_by_excel,
    "rows.csv": csv_with(","),
    "rows.csv.gz": packed(csv_with(",")),
    "semicolons.csv": csv_with(";"),
    "by_hand.csv": csv_with(", "),
    "rows.tsv": csv_with("\t"),
    "no_ending": csv_with(","),
    "rows[1].parquet": lambda path: table().to_parquet(path),
    "wrong_name.csv": lambda path: table().to_parquet(path),
    "stream.arrow": arrow_stream,
    "file.arrow": arrow_file,
    "saved": lambda path: table().save_to_disk(path),
    "shards": shards,
    "shards_of_splits": shards_of_splits,
    "packed_shards": packed_shards,
    "old_mac.jsonl": old_mac(lines),
    "old_mac.jsonl.gz": packed(old_mac(lines)),
    "old_mac.csv": csv_with(",", end="\r"),
    "old_mac": csv_with("\t", end="\r"),
    "old_mac.json": old_mac(indented),
    "two_systems.jsonl": lines_of_two_systems,
    "marked.jsonl": marked(lines),
    "marked.json": marked(indented),
    "marked.csv.gz": packed(marked(csv_with(","))),
    "marked.tsv": marked(csv_with("\t", end="\r")),
    "first_group_empty.parquet": first_row_group_empty,
    "shards_without_rows": shards_without_rows,
    "a_split_without_rows": a_split_without_rows,
    "splits": lambda path: datasets.DatasetDict(train=table(), test=table()).save_to_disk(path),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_problems_come_out_of_every_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMATS[name](path)
    loaded = load_problems(DataConfig(source="file", path=str(path)), split="train", seed=0, with_extra=True)
    assert not loaded.dropped.counts
    assert [
        {"id": p.id, "problem": p.text, "answer": p.answer, "level": p.level, **p.extra} for p in loaded.problems
    ] == ROWS
    suite = find_suite(str(path))
    assert suite.name == name.split(".")[0]
    assert [problem.id for problem in load_suite(suite).problems] == ["r0", "r1", "r2", "r3"]


def test_conversations_are_read_from_any_format(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    datasets.Dataset.from_list([{"chat": {"turns": turns}}]).to_parquet(tmp_path / "chats.parquet")
    (tmp_path / "pairs.csv").write_text("prompt,completion\n1+1=?,2\n")
    for name, columns in (("chats.parquet", {"messages": "chat.turns"}), ("pairs.csv", {})):
        data = SftDataConfig.model_validate({"source": "file", "path": str(tmp_path / name), "columns": columns})
        _, learned = streams(data, Dropped())
        assert [list(one.messages) for one in learned] == [turns]


def test_plain_json_lines_need_no_library(tmp_path: Path) -> None:
    for name in ("rows.jsonl.gz", "rows.json", "rows.csv"):
        FORMATS[name](tmp_path / name)
    code = (
        "import sys, pathlib; from datafiles.rows import rows_of\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir(): assert len(list(rows_of(path, print, ''))) == 4\n"
        "assert not {'datasets', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_rows_of_a_table_that_do_not_fit_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("problem,answer\n1+1=?,2\n\n1,2,3\n1+2=?,3\n")
    loaded = load_problems(DataConfig(source="file", path=str(tmp_path / "rows.csv")), split="train", seed=0)
    assert [problem.answer for problem in loaded.problems] == ["2", "3"]
    assert loaded.dropped.examples == {"blank line": "rows.csv:3", "3 cells under 2 names": "rows.csv:4"}


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    datasets.DatasetDict(dev=table()).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"no split 'train': it has dev; give .*/NAME, or data.split"):
        list(rows_of(tmp_path / "d", print, "data.path"))
    with pytest.raises(ValueError, match=r"or data.mix.1.split$"):
        list(rows_of(tmp_path / "d", print, "data.mix.1.path"))
    with pytest.raises(ValueError, match=r"give .*/NAME$"):
        list(rows_of(tmp_path / "d", print, "suite d", "test"))
    assert len(list(rows_of(tmp_path / "d" / "dev", print, "data.path"))) == 4
    data = DataConfig(source="file", path=str(tmp_path / "d"), split="dev")
    assert len(load_problems(data, split="train", seed=0).problems) == 4


def test_shards_are_of_one_format_and_one_split(tmp_path: Path) -> None:
    shards_of_splits(tmp_path / "d")
    data = DataConfig(source="file", path=str(tmp_path / "d"), split="validation", limit=3)
    assert len(load_problems(data, split="train", seed=0).problems) == 3
    with pytest.raises(ValueError, match=r"no split 'dev': it has test, train, validation"):
        load_problems(data.model_copy(update={"split": "dev"}), split="train", seed=0)
    lines(tmp_path / "d" / "train-extra.jsonl")
    with pytest.raises(ValueError, match=r"several formats \(test-00000-of-00002.parquet, train-extra.jsonl\)"):
        load_problems(data, split="train", seed=0)


@pytest.mark.parametrize("names", ["{}", "gsm8k_{}", "math-{}-v2", "2024.{}", "AIME {}", "gsm8k{}", "MATH{}A"])
def test_a_split_is_a_word_of_a_name_as_for_the_datasets_library(tmp_path: Path, names: str) -> None:
    """Test data is never trained on. A file whose name states no split is left out, and that is reported."""
    glued = (
        names[0] != "{" and names[names.index("{") - 1].isalnum()
    )  # as users name files, unlike the datasets library
    for split in ("train", "test"):
        name = names.format(split.title() if glued else split)
        (tmp_path / f"{name}.jsonl").write_text(f'{{"problem": "{split}", "answer": 1}}\n')
    expected = datasets.data_files.get_data_patterns(str(tmp_path))
    for split in ("train", "test"):
        found = [row["problem"] for _, row in rows_of(tmp_path, lambda *_: None, "data.path", split)]
        assert found == [split]
        assert glued or split in expected  # the datasets library recognizes these names
    (tmp_path / "latest.jsonl").write_text('{"problem": "neither", "answer": 1}\n')
    loaded = load_problems(DataConfig(source="file", path=str(tmp_path)), split="train", seed=0)
    assert [one.text for one in loaded.problems] == ["train"]
    assert loaded.dropped.examples == {"a file that says no split, beside files that do": "latest.jsonl"}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chat", ["role content", "from value"])
def test_a_lone_row_with_a_chat_is_a_row(indent: int | None, chat: str, tmp_path: Path) -> None:
    """Nor is it taken for an object around an array of rows."""
    row = {"data": [dict(zip(chat.split(), turn, strict=True)) for turn in (("user", "1+1=?"), ("assistant", "2"))]}
    (tmp_path / "row.json").write_text(json.dumps(row, indent=indent))
    assert [found for _, found in rows_of(tmp_path / "row.json", print, "")] == [row]
    plain = {"problem": "1+1=?", "steps": [{"text": "2"}]}
    (tmp_path / "row.json").write_text(json.dumps(plain))
    assert [found for _, found in rows_of(tmp_path / "row.json", print, "")] == [plain]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json", "rows.jsonl.gz"])
def test_an_empty_shard_is_left_out_and_counted(name: str, tmp_path: Path) -> None:
    """Zero-byte shards, first and last in the directory."""
    FORMATS[name](tmp_path / name)
    for empty in (f"a-{name}", f"z-{name}"):
        (tmp_path / empty).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    loaded = load_problems(DataConfig(source="file", path=str(tmp_path)), split="train", seed=0)
    assert len(loaded.problems) == 4
    assert loaded.dropped.counts == {"an empty file": 2}
    assert loaded.dropped.examples == {"an empty file": f"a-{name}"}


def test_a_suite_file_may_have_columns_of_its_own(tmp_path: Path) -> None:
    """The named columns if the file has them, otherwise the project's own."""
    named = ColumnsConfig(problem="question", answer="solution")
    for row in (
        {"question": "1+1=?", "solution": "2"},
        {"problem": "1+1=?", "solution": "2"},
        {"problem": "1+1=?", "answer": "2"},
    ):
        (tmp_path / "suite.jsonl").write_text(json.dumps(row))
        (problem,) = load_suite(find_suite(str(tmp_path / "suite.jsonl")), columns=named).problems
        assert (problem.text, problem.answer) == ("1+1=?", "2")
    (tmp_path / "suite.jsonl").write_text(json.dumps({"frage": "1+1=?", "answer": "2"}))
    with pytest.raises(
        ValueError, match=r"suite suite: .* has no column 'problem'.*say which it is with --problem=NAME"
    ):
        load_suite(find_suite(str(tmp_path / "suite.jsonl")), columns=named)
