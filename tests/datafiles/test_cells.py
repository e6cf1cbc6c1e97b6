"""What a row says: the problem as a text or a chat, the answer in its wrappings, and columns inside mappings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest

from datafiles.problems import Columns, problem_rows
from rollout.config import ColumnsConfig, DataConfig
from rollout.prompts.problems import load_problems


def asked(row: dict[str, Any], **columns: str) -> Any:
    """(problem, system turn, answer) of one row, or the reason why it is dropped."""
    reasons: list[str] = []
    found = list(problem_rows([("x:1", row)], Columns(**columns), lambda reason, _: reasons.append(reason)))
    return (found[0].asked.text, found[0].asked.system, found[0].answer) if found else reasons[0]


USER, SYSTEM = {"role": "user", "content": "1+1=?"}, {"role": "system", "content": "Think."}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ([USER], ("1+1=?", "")),
        ([SYSTEM, USER], ("1+1=?", "Think.")),
        ([SYSTEM, {"role": "user", "content": "0"}, {"role": "assistant", "content": "0"}, USER], ("1+1=?", "Think.")),
        ([{"from": "human", "value": "1+1=?"}, {"from": "gpt", "value": "2"}], ("1+1=?", "")),
        ([{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]}], ("1+1", "")),
        ([{"role": "user", "content": [{"text": "What is "}, {"text": "1+1?\n"}]}], ("What is 1+1?", "")),
        ([{"role": "user", "content": {"type": "text", "text": "1"}}], "problem is a mapping, not a text"),
        (17, ("17", "")),
        (float("nan"), "no problem"),
        (b"1+1", "problem is bytes, not a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "problem has a turn that is not text alone"),
        ([SYSTEM], "problem has no turn of the user"),
        ([], "problem is a list, not a text"),
        ("[]", ("[]", "")),
        ('{"a"}', ('{"a"}', "")),
        ({"a": 1}, "problem is a mapping, not a text"),
        (None, "no problem"),
    ],
)
def test_a_problem_is_a_text_or_the_last_turn_of_a_chat(problem: Any, expected: Any) -> None:
    found = asked({"problem": problem, "answer": "2"})
    assert found == (expected if isinstance(expected, str) else (*expected, "2"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (7, "7"), (0, "0"), (2.5, "2.5"), (0.1 + 0.2, "0.3"), (10 / 3, "3.33333333333333"), (1e-7, "1e-07"),
        (2.0**60, "1.152921504606847e+18"), (1e300, "1e+300"), (1234567.125, "1234567.125"),
        (1.600000023841858, "1.6"), (3.3333332538604736, "3.3333333"), ("0.30000000000000004", "0.30000000000000004"),
        (True, "True"), (False, "False"), (["7"], "7"), ([[7]], "7"),
        ({"ground_truth": "7", "style": "rule"}, "7"), ({"ground_truth": ["7"]}, "7"),
        ([], "no answer"), (None, "no answer"), ({"ground_truth": None}, "no answer"),
        (["1", "2"], "answer is a list, not a text"), ({"value": 7}, "answer is a mapping, not a text"),
        ('["7"]', "7"), ("['7']", "7"),
        (r'["\\frac{7}{2}"]', r"\frac{7}{2}"), (r'["\frac{7}{2}"]', r"\frac{7}{2}"), (r'["\u03c0"]', "π"),
        ("['it\\'s']", "it's"),
        ("[7]", "[7]"), ('["1","2"]', '["1","2"]'), ("['1','2']", "['1','2']"), ("['']", "no answer"),
        (float("nan"), "answer is not a finite number"), (b"7", "answer is bytes, not a text"),
    ],
)  # fmt: skip
def test_an_answer_is_unwrapped_or_the_row_dropped(answer: Any, expected: str) -> None:
    found = asked({"problem": "?", "answer": answer})
    assert found == (expected if " " in expected else ("?", "", expected))


def test_nan_is_nothing_as_pandas_writes_it(tmp_path: Path) -> None:
    """In rows of a DataFrame written one by one, an empty cell is NaN: it means no id and no level."""
    rows = [{"problem": f"{number}+1", "answer": 2, "id": math.nan, "level": math.nan} for number in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_problems(DataConfig(source="file", path=str(path)), split="train", seed=0)
    assert [(one.id, one.level) for one in loaded.problems] == [(f"rows.jsonl-{number}", "") for number in (1, 2, 3)]


def test_a_column_may_lie_in_a_mapping() -> None:
    row = {"prompt": [USER], "reward_model": {"ground_truth": "2"}, "a.b": "3"}
    for answer, expected in (("reward_model.ground_truth", "2"), ("reward_model", "2"), ("a.b", "3")):
        assert asked(row, problem="prompt", answer=answer) == ("1+1=?", "", expected)


def test_verl_files_are_recognized_by_their_columns(tmp_path: Path) -> None:
    rows = [{"data_source": "x", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    data = DataConfig(source="file", path=str(tmp_path / "train.parquet"))
    way = "data.columns.problem=prompt data.columns.answer=reward_model.ground_truth"
    with pytest.raises(ValueError, match=way):
        load_problems(data, split="train", seed=0)
    columns = ColumnsConfig(problem="prompt", answer="reward_model.ground_truth")
    (problem,) = load_problems(data.model_copy(update={"columns": columns}), split="train", seed=0).problems
    assert (problem.text, problem.answer) == ("1+1=?", "2")
