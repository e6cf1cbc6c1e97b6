"""Rows in the layouts of public datasets and other programs: the same problem comes out of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd  # type: ignore[import-untyped]
import pytest

from datafiles.dropped import Dropped
from datafiles.formats import HELD_OUT
from datafiles.problems import UNASKED_INPUT
from datafiles.text import TextFileError
from rl_engine.config.sft import ChatColumnsConfig, SftDataConfig
from rl_engine.sft.conversations import streams
from rollout.config import DataConfig
from rollout.prompts.problems import Loaded, load_problems

ASKED = (("1+1=?", "Think.", r"\frac{4}{2}"), ("say 'x'\n2+2=?", "Think.", "4"))


def load(path: Path, columns: dict[str, str] | None = None, **settings: Any) -> Loaded:
    data = {"source": "file", "path": str(path), "columns": columns or {}, **settings}
    return load_problems(DataConfig.model_validate(data), split="train", seed=0)


def chat(problem: str, setting: str, role: str = "system") -> list[dict[str, str]]:
    return [{"content": setting, "role": role}, {"content": problem, "role": "user"}]


def verl() -> pd.DataFrame:
    return pd.DataFrame(
        {"prompt": chat(problem, system), "reward_model": {"ground_truth": answer, "style": "rule"}, "n": number}
        for number, (problem, system, answer) in enumerate(ASKED)
    )


def as_numpy_has_it(path: Path) -> pd.DataFrame:
    """When read from Parquet, a list is a NumPy array, whose text has no commas between items."""
    verl().to_parquet(path)
    return pd.read_parquet(path)


def as_text(path: Path) -> None:
    rows = [{name: json.dumps(value) for name, value in row.items()} for row in verl().to_dict("records")]
    datasets.Dataset.from_list(rows).to_parquet(path)


def by_id(path: Path) -> None:
    path.write_text(json.dumps({f"p{row['n']}": row for row in verl().to_dict("records")}))


def of_openai(path: Path) -> None:
    rows = [{"prompt": chat(one, system, "developer"), "reward_model": answer} for one, system, answer in ASKED]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


VERL: dict[str, Callable[[Path], Any]] = {
    "as_it_is.parquet": lambda path: verl().to_parquet(path),
    "of_pandas.csv": lambda path: verl().to_csv(path, index=False),
    "of_numpy.csv": lambda path: as_numpy_has_it(path).to_csv(path, index=False),
    "json_in_text.parquet": as_text,
    "by_column.json": lambda path: verl().to_json(path),
    "by_column_of_some_rows.json": lambda path: verl().set_index(pd.Index([7, 3])).to_json(path),
    "by_row.json": lambda path: verl().to_json(path, orient="index", indent=1),
    "names_apart.json": lambda path: verl().to_json(path, orient="split"),
    "with_a_schema.json": lambda path: verl().to_json(path, orient="table"),
    "lists.json": lambda path: path.write_text(json.dumps(verl().to_dict("list"), indent=1)),
    "by_id.json": by_id,
    "of_openai.jsonl": of_openai,
}


@pytest.mark.parametrize("answer", ["reward_model.ground_truth", "reward_model"])
@pytest.mark.parametrize("name", VERL)
def test_a_problem_is_itself_however_its_row_is_written(name: str, answer: str, tmp_path: Path) -> None:
    """A chat or mapping that was turned into text is parsed again: its text is neither asked as the problem nor used as
    the reference."""
    VERL[name](tmp_path / name)
    columns = {"problem": "prompt", "answer": "reward_model" if name == "of_openai.jsonl" else answer}
    loaded = load(tmp_path / name, columns)
    assert tuple((one.text, one.system, one.answer) for one in loaded.problems) == ASKED
    assert not loaded.dropped.counts


def test_conversations_that_became_text_are_learned_from(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    rows = pd.DataFrame([{"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}])
    rows.to_csv(tmp_path / "chats.csv", index=False)
    dropped = Dropped()
    data = SftDataConfig.model_validate({"source": "file", "path": str(tmp_path / "chats.csv")})
    assert [list(one.messages) for one in streams(data, dropped)[1]] == [turns, turns]
    assert not dropped.counts


@pytest.mark.parametrize("text", ['{"a": [1, 2]}, what is its sum?', '{"a": [1, 2]}', '[{"price": 3}]', "{'a', 'b'}"])
def test_what_is_asked_may_be_json_itself(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": text, "answer": text}))
    (problem,) = load(tmp_path / "rows.jsonl").problems
    assert (problem.text, problem.answer) == (text, text)


def test_an_answer_begins_with_its_command(tmp_path: Path) -> None:
    r"""JSON reads the escapes of an unescaped \frac and \text as white space, which else is left out at both ends."""
    answers = (r"\frac{1}{2}", r"\text{(A)}", r"\theta", r"\right", r"\n5\t")
    rows = [f'{{"problem": "{n}?", "answer": "{answer}"}}\n' for n, answer in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    assert [one.answer for one in load(tmp_path / "rows.jsonl").problems] == [*answers[:-1], "5"]


def test_a_word_for_no_answer_is_none(tmp_path: Path) -> None:
    """NuminaMath-1.5 has such words for a fifth of its problems: a box with `proof` in it is no solution."""
    rows = [{"problem": f"{n}?", "answer": answer} for n, answer in enumerate(("proof", "notfound", "Proof", "none"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(tmp_path / "rows.jsonl")
    assert [one.answer for one in loaded.problems] == ["none"]
    assert loaded.dropped.counts == {"no answer": 3}


def test_a_capital_letter_begins_a_word_of_a_files_name(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        (tmp_path / f"gsm8k{split}.jsonl").write_text(json.dumps({"problem": split, "answer": "1"}))
    assert [one.text for one in load(tmp_path).problems] == ["Train"]
    assert [one.text for one in load(tmp_path, split="test").problems] == ["Test"]


@pytest.mark.parametrize(
    "name", ["HumanEval", "human_eval", "C-Eval", "AGIEval", "train_test_overlap", "latest", "contest", "retrained"]
)
def test_a_name_with_a_word_in_another_says_no_split(name: str, tmp_path: Path) -> None:
    """Such a file is left out, and counted, beside a training set; beside other files without a split it is one of
    them."""
    for stem in (name, "other"):
        (tmp_path / f"{stem}.jsonl").write_text(json.dumps({"problem": stem, "answer": "1"}))
    assert {one.text for one in load(tmp_path).problems} == {name, "other"}
    (tmp_path / "other.jsonl").rename(tmp_path / "train.jsonl")
    loaded = load(tmp_path)
    assert [one.text for one in loaded.problems] == ["other"]
    assert loaded.dropped.counts == {"a file that says no split, beside files that do": 1}


@pytest.mark.parametrize(
    ("row", "answerable"),
    [
        ({"choices": ["Rome", "Oslo"], "answer": 1}, False),
        ({"choices": ["Rome", "Oslo"], "answer": "B"}, False),
        ({"options": {"A": "Rome", "B": "Oslo"}, "answer": "(B)"}, False),
        ({"choices": {"text": ["Rome", "Oslo"], "label": ["A", "B"]}, "answer": "B"}, False),
        ({"options": "['A)Rome', 'B)Oslo']", "answer": "B"}, True),  # plain text, which may be anything
        ({"choices": ["Rome", "Oslo"], "answer": "Oslo"}, True),
        ({"choices": ["Rome", "Oslo"], "answer": "Lima"}, True),
        ({"choices": ["Rome", "Oslo"], "answer": 2}, True),  # they are counted from 0
        ({"choices": ["1", "2"], "answer": "1"}, True),
        ({"choices": [1, 2], "answer": 1}, True),
        ({"choices": ["0", "4", "1", "6"], "answer": 1}, False),  # MMLU: a place, though a choice reads 1
        ({"choices": ["2", "7", "3"], "answer": 0, "problem": "What is 10-3?"}, False),
        ({"options": ["$3$", "$1$", "$4$"], "answer": "1"}, True),
        ({"choices": [], "answer": "B"}, True),
        ({"choices": ["Rome", "Oslo"], "answer": "B", "problem": "Which? A. Rome B. Oslo"}, True),
        ({"answer": "B"}, True),
    ],
)
def test_choices_that_are_not_asked_leave_no_problem(row: dict[str, Any], answerable: bool, tmp_path: Path) -> None:
    """MMLU, AQuA and ARC have such columns: for the question alone, the answer B would be a guess."""
    rows = [{"problem": "The capital of Norway?", **row}, {"problem": "1+1?", "answer": "2"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    loaded = load(tmp_path / "rows.jsonl")
    assert len(loaded.problems) == 1 + answerable
    assert all("a column that problem does not repeat" in reason for reason in loaded.dropped.counts)


def test_a_column_that_says_the_split_keeps_tested_rows_apart(tmp_path: Path) -> None:
    rows = [
        {"problem": f"{n}?", "answer": "1", "split": said} for n, said in enumerate(("test", "train", "hard", "test"))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(path)
    assert [one.text for one in loaded.problems] == ["1?", "2?"]
    assert loaded.dropped.counts == {"a row of the split 'test', by its column split": 2}
    assert [one.text for one in load(path, split="test").problems] == ["0?", "2?", "3?"]


def test_a_column_that_says_one_split_chooses_nothing(tmp_path: Path) -> None:
    """A user who gives a file of test rows means those rows; but with two splits, neither of them `train`, none may be
    guessed."""
    path = tmp_path / "rows.jsonl"
    row = {"problem": "1?", "answer": "1"}
    path.write_text("".join(json.dumps({**row, "split": said}) + "\n" for said in ("test", "test")))
    assert len(load(path).problems) == 2
    path.write_text("".join(json.dumps({**row, "split": said}) + "\n" for said in ("test", "dev")))
    with pytest.raises(ValueError, match=r"rows.jsonl has no rows of the split 'train': it has dev, test"):
        load(path)


def by_column(path: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    several = [{**row, "split": name} for name, part in rows.items() for row in part]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    return path / "rows.jsonl"


def by_file(path: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    for name, part in rows.items():
        (path / f"{name}.json").write_text(json.dumps(part))
    return path


def by_save_to_disk(path: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    parts = {name: datasets.Dataset.from_list(part) for name, part in rows.items()}
    datasets.DatasetDict(parts).save_to_disk(str(path / "saved"))
    return path / "saved"


def by_list(path: Path, rows: dict[str, list[dict[str, str]]]) -> Path:
    (path / "rows.json").write_text(json.dumps(rows))
    return path / "rows.json"


@pytest.mark.parametrize("write", [by_column, by_file, by_save_to_disk, by_list])
def test_an_evaluation_reads_test_or_validation(write: Callable[..., Path], tmp_path: Path) -> None:
    """Many sets have no `test`. Whoever asks for `test` by name is not given another split."""
    parts = ("train", "validation")
    path = write(tmp_path, {part: [{"problem": f"{part} {n}?", "answer": "1"} for n in (1, 2)] for part in parts})
    for split, part in ((None, "train"), ("validation", "validation"), (HELD_OUT, "validation")):
        assert [one.text for one in load(path, split=split).problems] == [f"{part} 1?", f"{part} 2?"]
    with pytest.raises(ValueError, match=r"of the split 'test': it has train, val|no split 'test': it has train, val"):
        load(path, split="test")
    with pytest.raises(ValueError, match="split 'dev': it has train, validation"):
        load(path, split="dev|test")
    (tmp_path / "more").mkdir()
    more = write(tmp_path / "more", {part: [{"problem": part, "answer": "1"}] for part in (*parts, "test")})
    assert [one.text for one in load(more, split=HELD_OUT).problems] == ["test"]


def test_a_task_with_examples_for_training_is_one_row(tmp_path: Path) -> None:
    """As of ARC: its lists have the names of splits, and grids in them."""
    grids = [{"input": [[0, 1]], "output": [[1, 0]]}]
    row = {"problem": "?", "answer": "1", "train": grids, "test": grids}
    for name, indent in (("task.json", 1), ("task.jsonl", None)):
        (tmp_path / name).write_text(json.dumps(row, indent=indent))
        assert [one.text for one in load(tmp_path / name).problems] == ["?"]


@pytest.mark.parametrize(
    ("row", "answerable"),
    [
        ({"input": "1+1"}, False),
        ({"input": ""}, True),
        *(({"input": word}, True) for word in ("<noinput>", "N/A", "None", " nan ")),
        ({"input": " 1  +\n1", "instruction": "Add 1 +  1"}, True),
        ({}, True),
        ({"input": "1+1", "instruction": "Add 1+1"}, True),
    ],
)
def test_an_input_that_is_not_asked_leaves_no_problem(row: dict[str, str], answerable: bool, tmp_path: Path) -> None:
    """Alpaca's files divide the question: of "Add the numbers" alone the answer would be a guess."""
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Add the numbers", "output": "2", **row}, {"instruction": "1+2?", "output": "3"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    loaded, dropped = load(path, {"problem": "instruction", "answer": "output"}), Dropped()
    columns = ChatColumnsConfig(prompt="instruction", completion="output")
    _, learned = streams(SftDataConfig(source="file", path=str(path), columns=columns), dropped)
    assert len(loaded.problems) == len([*learned]) == 1 + answerable
    assert [*loaded.dropped.counts] == [*dropped.counts] == ([] if answerable else [UNASKED_INPUT])


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("part-*.jsonl", "patterns are not expanded"),
        ("hf://datasets/openai/gsm8k", "data.source=hub"),
        ("openai/gsm8k", "data.source=hub"),
    ],
)
def test_a_path_that_is_none_is_told_what_to_give(path: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^data.path: no such file: .*; .*{hint}"):
        load(Path(path))


def test_a_shard_that_is_not_there_is_counted(tmp_path: Path) -> None:
    """An incomplete download: half of a suite is a different suite."""
    for part in (0, 3):
        rows = [{"problem": f"{part}+1", "answer": "1"}]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"train-{part:05}-of-00004.parquet")
    loaded = load(tmp_path)
    assert len(loaded.problems) == 2
    reason = "a shard that is not there, by the numbers of those that are"
    assert loaded.dropped.counts == {reason: 2}
    assert loaded.dropped.examples == {reason: "train-00001-of-00004.parquet"}


def test_a_link_to_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    """As in a hub cache whose files were deleted, or that was copied without the link targets."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "1+1", "answer": "2"}))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "blobs" / "0f")
    with pytest.raises((FileNotFoundError, TextFileError), match=r"^data.path: no such file: .*b\.jsonl"):
        load(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "test.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "train.jsonl")
    assert len(load(tmp_path).problems) == 1  # training needs no test set
    with pytest.raises(FileNotFoundError, match=r"^data.path: no such file: .*test\.jsonl"):
        load(tmp_path, split="test")


def test_shards_may_be_counted_from_one(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"train-{part:05}-of-00002.jsonl").write_text(json.dumps({"problem": f"{part}+1", "answer": "1"}))
    assert not load(tmp_path).dropped.counts


def test_the_rows_of_an_array_are_counted_from_one(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"problem": "1+1", "answer": "2"}, [], {"problem": "1+2"}]))
    loaded = load(tmp_path / "rows.json")
    assert loaded.dropped.examples == {"not a JSON object": "rows.json:2", "no answer": "rows.json:3"}
    assert [one.id for one in loaded.problems] == ["rows.json-1"]


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_beside_a_list_that_is_as_long_are_rows(indent: int | None, tmp_path: Path) -> None:
    rows = [{"problem": "1+1", "answer": "2"}, {"problem": "1+2", "answer": "3"}]
    table = {"annotators": ["A", "B"], "data": rows}
    (tmp_path / "rows.json").write_text(json.dumps(table, indent=indent))
    assert [one.text for one in load(tmp_path / "rows.json").problems] == ["1+1", "1+2"]


def test_a_message_names_no_thousand_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"metadata": 1, **{f"p{n}": [n, "1+1"] for n in range(5000)}}))
    with pytest.raises(ValueError, match=r"p38 … \(5,001 in all\): say which") as refused:
        load(tmp_path / "rows.json")
    assert len(str(refused.value)) < 1000
