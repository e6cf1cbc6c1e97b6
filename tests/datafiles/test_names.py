"""What names of files and directories say: which of them hold data, of which split, and in which format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from datafiles.formats import (
    METADATA,
    SPLITS,
    format_of,
    has_splits,
    is_file_name,
    is_table,
    shards_of,
    split_in,
    stem_of,
)
from datafiles.text import TextFileError

LINE, TABLE = '{"problem": "1+1", "answer": "2"}\n', "problem,answer\n1+1,2\n"


def fill(directory: Path, **files: str) -> Path:
    """Make a directory with these files; in their names, __ stands for a dot."""
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


def test_the_shards_of_a_directory_are_its_visible_data_files(tmp_path: Path) -> None:
    names = ("train-00000-of-00001.parquet", "MATHTest.JSONL.GZ", "a_dev.csv", "train_and_test.json", "rows.arrow")
    others = (".train.jsonl", "_train.jsonl", "README.md", "train.jsonl.zip", *METADATA)
    for name in (*names, *others):
        (tmp_path / name).touch()
    (tmp_path / "test.jsonl").mkdir()
    assert {split: [file.name for file in files] for split, files in shards_of(tmp_path).items()} == {
        "train": ["train-00000-of-00001.parquet"],
        "test": ["MATHTest.JSONL.GZ"],
        "dev": ["a_dev.csv"],
        "": ["rows.arrow", "train_and_test.json"],
    }


@pytest.mark.parametrize(
    ("cell", "split"),
    [("train", "train"), ("TRAINING", "train"), ("test_set", "test"), ("train 1", ""), ("", ""), (1, ""), (None, "")],
)
def test_a_cell_is_the_whole_name_of_a_split(cell: object, split: str) -> None:
    assert split_in(cell) == split


def test_a_directory_has_splits_by_its_files_names(tmp_path: Path) -> None:
    assert has_splits(fill(tmp_path / "named", train__jsonl=LINE, rows__jsonl=LINE))
    assert has_splits(fill(tmp_path / "one", test__jsonl=LINE))
    assert has_splits(fill(tmp_path / "saved", **{SPLITS.replace(".", "__"): "{}"}))
    assert not has_splits(fill(tmp_path / "rows", a__jsonl=LINE, b__jsonl=LINE))
    assert not has_splits(fill(tmp_path / "empty"))
    assert not has_splits(tmp_path / "one" / "test.jsonl")
    assert not has_splits(tmp_path / "absent")


def test_a_directory_is_a_table_if_any_of_its_files_is(tmp_path: Path) -> None:
    assert is_table(fill(tmp_path / "tables", a__csv="", b__csv=TABLE), "k")
    assert not is_table(fill(tmp_path / "lines", a__jsonl=LINE), "k")
    (tmp_path / "tables" / "0.csv").symlink_to(tmp_path / "gone")
    assert is_table(tmp_path / "tables", "k")
    assert is_table(tmp_path / "tables" / "b.csv", "k")


def test_a_directory_is_empty_if_all_that_it_holds_is(tmp_path: Path) -> None:
    shards = fill(tmp_path / "shards", a__jsonl="", b__jsonl="")
    assert format_of(shards, "k").kind == "empty"
    (shards / "c.jsonl").symlink_to(tmp_path / "gone")  # of which nothing is known
    assert format_of(shards, "k").kind == "shards"


def test_a_directory_without_data_says_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path / "data", a__jsonl=LINE)
    fill(tmp_path / "docs", a__md="")
    fill(tmp_path, README__md="")
    with pytest.raises(TextFileError, match=rf"holds README\.md, data, docs; give {tmp_path / 'data'}$"):
        format_of(tmp_path, "k")
    with pytest.raises(TextFileError, match=r"holds a\.md; JSON Lines, "):
        format_of(tmp_path / "docs", "k")
    with pytest.raises(TextFileError, match=r"it is empty; JSON Lines, "):
        format_of(fill(tmp_path / "none"), "k")


@pytest.mark.parametrize("name", ["a/b", "rows.jsonl", "ROWS.CSV.GZ", "here"])
def test_what_looks_like_a_file_or_is_there_is_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert is_file_name(name)
    assert not is_file_name("held_out")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("data/train.jsonl.gz", "train"), ("Train.JSONL.GZ", "Train"), ("v1.5.csv", "v1.5"), ("held.out", "held.out")],
)
def test_a_stem_is_a_name_without_its_known_endings(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_a_format_whose_files_have_bytes_is_not_empty(tmp_path: Path) -> None:
    for name in ("ROWS.PARQUET", "rows.arrow"):
        (tmp_path / name).touch()
        with pytest.raises(TextFileError, match="has 0 bytes, so writing or copying it was cut short"):
            format_of(tmp_path / name, "k")


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.csv", "problem\n1+1\n", "table"),
        ("a.TSV", "problem\n1+1\n", "table"),
        ("a.txt", TABLE, "table"),
        ("a.txt", "\n\n" + TABLE, "table"),
        ("a.txt", "problem\n1, 2\n", "lines"),
        ("a.json", "1, 2\n", "lines"),
        ("a.csv", LINE, "lines"),
        ("a.json", "{\n" + LINE[1:], "documents"),
        ("a.json", "  { \n" + LINE[1:], "documents"),
        ("a.json", f" [{LINE}]", "documents"),
        ("a.csv", " \n", "lines"),
    ],
)
def test_a_texts_kind_is_that_of_its_first_line(name: str, text: str, kind: str, tmp_path: Path) -> None:
    """Packed or not."""
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = format_of(tmp_path / name, "k"), format_of(tmp_path / f"{name}.gz", "k")
    assert (plain.kind, plain.packed) == (kind, False)
    assert (packed.kind, packed.packed) == (kind, True)
