"""Problem sources, the generator, the cursor: bad rows are dropped with a reason, nothing else is lost."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rewards import Grader, Verdict
from rl_engine.config import Config
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.data import prepare
from rl_engine.sft.embedded import QUICKSTART_SUMS
from rollout.config import ArithmeticConfig, ColumnsConfig, DataConfig, PromptConfig
from rollout.models import locate_model
from rollout.prompts.arithmetic import Expression, arithmetic_problems, expressions
from rollout.prompts.cursor import Cursor
from rollout.prompts.problems import load_problems
from rollout.prompts.renderer import Renderer
from rollout.prompts.sources import SOURCES

# What the warm start of the embedded model shows (configs/embedded.yaml).
SHOWN = ArithmeticConfig(terms=(2, 3, 4, 5, 6), largest=20)


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load(**settings: Any) -> Any:
    return load_problems(DataConfig(**settings), split="train", seed=0)


def test_bad_rows_are_dropped_each_with_its_reason(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"id": "a", "problem": "1+1", "answer": "2", "level": 3, "subject": "sums"},
            {"id": "b", "problem": "1+2"},
            {"id": "c", "problem": "1+3", "answer": None},
            {"id": "d", "problem": "  ", "answer": "4"},
            {"id": "a", "problem": "1+5", "answer": "6"},
            "{broken",
            ["a", "list"],
            "",
            {"problem": "no id", "answer": 7},
        ],
    )
    loaded = load(source="jsonl", path=path)
    assert [(p.id, p.answer) for p in loaded.problems] == [("a", "2"), ("rows.jsonl-9", "7")]
    assert (loaded.problems[0].level, loaded.problems[0].subject) == ("3", "sums")
    assert loaded.dropped == {
        "no answer": 2,
        "no problem": 1,
        "id seen before": 1,
        "not JSON": 1,
        "not a JSON object": 1,
        "blank line": 1,
    }
    assert loaded.examples["not JSON"] == "rows.jsonl:6"


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"frage": "1+1", "antwort": "2"}])
    loaded = load(source="jsonl", path=path, columns=ColumnsConfig(problem="frage", answer="antwort"))
    assert (loaded.problems[0].text, loaded.problems[0].answer) == ("1+1", "2")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"source": "jsonl"}, ValueError, "data.path"),
        ({"source": "gms8k"}, ValueError, "gsm8k"),
        ({"source": "jsonl", "path": "absent.jsonl"}, FileNotFoundError, "absent.jsonl"),
    ],
)
def test_a_source_that_cannot_be_read_says_so(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(**settings)


def test_a_file_without_usable_rows_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'answer'"):
        load(source="jsonl", path=write_jsonl(tmp_path / "rows.jsonl", [{"problem": "1+1"}]))
    with pytest.raises(ValueError, match="it is empty"):
        load(source="jsonl", path=write_jsonl(tmp_path / "empty.jsonl", []))


def test_a_hub_data_set_is_read_by_its_table_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(path: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((path, config, split))
        assert revision == {"HuggingFaceH4/MATH-500": SOURCES["math500"].revision}.get(path)
        rows = [
            {"problem": "p1", "solution": r"so \boxed{\frac{1}{2}} is it", "level": "Level 2", "type": "Algebra"},
            {"problem": "p2", "solution": r"\boxed{1} then \boxed{2}", "level": "Level 1", "type": "Algebra"},
            {"problem": "shared", "solution": r"\boxed{3}", "level": "Level 1", "type": "Algebra"},
            {"problem": "no box", "solution": "nothing", "level": "Level 1", "type": "Algebra"},
        ]
        if path == "HuggingFaceH4/MATH-500":
            rows = [{"problem": "shared", "answer": "3", "level": "1", "subject": "Algebra"}]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load(source="math")
    parts = len(SOURCES["math"].configs) * len(SOURCES["math"].splits)
    assert len(asked) == parts + 1
    assert [p.answer for p in loaded.problems] == [r"\frac{1}{2}", "2"] * parts
    assert loaded.problems[0].id == "math-algebra-train-0"
    assert loaded.dropped == {"also in math500": parts, "no answer": parts}


def test_gsm8k_answers_follow_the_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": "q", "answer": "2+2=<<2+2=4>>4\n#### 1,234"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    assert load(source="gsm8k").problems[0].answer == "1234"


def test_a_missing_column_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{"prompt": "q"}]))
    with pytest.raises(ValueError, match=r"no column answer, problem; it has prompt \(set data.columns\)"):
        load(source="aime2024")


# The generator.


def test_train_and_held_out_never_share_an_expression() -> None:
    train = {p.text for seed in (0, 1, 2) for p in arithmetic_problems(SHOWN, "train", 3000, seed)}
    held_out = {p.text for p in arithmetic_problems(QUICKSTART_SUMS, "held_out", 1000, 1)}
    assert len(held_out) == 1000
    assert not train & held_out
    shown = {e.text for e in itertools.islice(expressions("train", 0, SHOWN.terms, SHOWN.largest), 20_000)}
    assert not shown & {text.removesuffix("=?") for text in held_out}


def test_answers_and_worked_steps_are_right() -> None:
    for problem in arithmetic_problems(QUICKSTART_SUMS, "train", 300, 7):
        expression = problem.text.removesuffix("=?")
        assert eval(expression) == int(problem.answer)
        assert problem.level == str(len(re.findall(r"\d+", expression)))
    worked = Expression((17, -20, 9)).worked()
    assert worked == "17-20=-3\n-3+9=6\n\\boxed{6}"


def test_the_generator_is_a_function_of_its_seed_and_stops_when_all_is_used() -> None:
    assert arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3) == arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3)
    assert arithmetic_problems(QUICKSTART_SUMS, "train", 50, 3) != arithmetic_problems(QUICKSTART_SUMS, "train", 50, 4)
    tiny = ArithmeticConfig(terms=(2,), largest=2)
    assert 0 < len(arithmetic_problems(tiny, "train", 100, 0)) <= 8


# The cursor.


def test_the_cursor_shuffles_each_epoch_and_resumes_anywhere() -> None:
    whole = Cursor(list(range(10)), seed=3)
    taken = [whole.take(4) for _ in range(6)]
    flat = list(itertools.chain(*taken))
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20] != list(range(10))
    resumed = Cursor(list(range(10)), seed=3, position=12)
    assert [resumed.take(4) for _ in range(3)] == taken[3:]
    assert Cursor([1, 2, 3], seed=0, shuffle=False).take(5) == [1, 2, 3, 1, 2]
    with pytest.raises(ValueError, match="no problem"):
        Cursor([], seed=0)


# What becomes a prompt.


def config_of(path: str, **data: Any) -> Config:
    return Config.model_validate(
        {
            "output_dir": "unused",
            "model": {"name": "embedded"},
            "data": {"source": "jsonl", "path": path, **data},
            "prompt": {"instruction": None},
            "optim": {"lr": 1e-3},
            "train": {"steps": 1, "problems_per_step": 1},
        }
    )


@pytest.fixture
def renderer() -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(locate_model("embedded")), PromptConfig(instruction=None))


def test_what_cannot_be_rewarded_or_does_not_fit_is_dropped(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    rows = [
        {"id": "good", "problem": "1+1=?", "answer": "2"},
        {"id": "long", "problem": "1+" * 40 + "1=?", "answer": "41"},
        {"id": "hopeless", "problem": "1=?", "answer": "?"},
    ]
    config = config_of(write_jsonl(tmp_path / "rows.jsonl", rows), max_prompt_tokens=20)
    data = prepare(config, renderer, grader, ranks)
    assert [prompt.problem.id for prompt in data.prompts] == ["good"]
    assert data.dropped.total() == 2
    assert data.examples["prompt over data.max_prompt_tokens (20)"] == "long"
    assert "dropped 1" in data.describe()
    assert "hopeless" in data.describe()


def test_hostile_rows_cost_neither_the_run_nor_its_time(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    """Ten megabytes of problem or answer, JSON nested without end, half a character: dropped, each with its reason."""
    rows = [
        {"id": "good", "problem": "1+1=?", "answer": "2"},
        {"id": "problem of 10 MB", "problem": "1+" * 5_000_000 + "1=?", "answer": "5000001"},
        {"id": "answer of 10 MB", "problem": "2+2=?", "answer": "4" * 10_000_000},
        "[" * 100_000,
        {"id": "half", "problem": "\ud800", "answer": "2"},
        {"id": "odd", "problem": "1+2=?", "answer": "3", "level": float("nan"), "subject": {"a": [None]}},
        {"id": "good", "problem": "1+3=?", "answer": "4"},
    ]
    config = config_of(write_jsonl(tmp_path / "rows.jsonl", rows), max_prompt_tokens=20)
    start = time.process_time()
    data = prepare(config, renderer, grader, ranks)
    assert time.process_time() - start < 5  # to tokenize the problem alone takes longer
    assert [prompt.problem.id for prompt in data.prompts] == ["good", "odd"]
    assert data.examples == {
        "not JSON": "rows.jsonl:4",
        "not text: half of a surrogate pair": "rows.jsonl:5",
        "id seen before": "rows.jsonl:7",
        "prompt over data.max_prompt_tokens (20)": "problem of 10 MB",
        "reference does not grade correct against itself (unparseable)": "answer of 10 MB",
    }


def test_nothing_left_is_an_error_with_the_reasons(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    config = config_of(
        write_jsonl(tmp_path / "r.jsonl", [{"problem": "1+1=?" * 30, "answer": "2"}]), max_prompt_tokens=8
    )
    with pytest.raises(ValueError, match=r"no problem is left.*max_prompt_tokens"):
        prepare(config, renderer, grader, ranks)


@pytest.mark.shared
def test_real_gsm8k_problems_all_become_prompts(shared_data: Path, renderer: Renderer, grader: Grader) -> None:
    loaded = load(source="gsm8k", path=str(shared_data / "gsm8k_test.jsonl"))
    assert len(loaded.problems) == 1319
    assert not loaded.dropped
    verdicts = {result.verdict for result in grader.check_references([p.answer for p in loaded.problems])}
    assert verdicts == {Verdict.CORRECT}
