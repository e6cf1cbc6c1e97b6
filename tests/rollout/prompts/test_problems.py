"""Problem sources, the generator, the cursor: bad rows are dropped with a reason, and nothing else is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from datafiles.problems import number_in
from rewards import Grader, RewardConfig, Verdict
from rl_engine.config import Config
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.data import prepare
from rollout.config import ColumnsConfig, DataConfig, PromptConfig
from rollout.models import locate_model
from rollout.prompts.problems import dataset_of, hub_items, load_problems
from rollout.prompts.renderer import Renderer
from rollout.prompts.sources import SOURCES, HubDataset


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
    assert loaded.dropped.counts == {
        "no answer": 2,
        "no problem": 1,
        "id seen before": 1,
        "not JSON": 1,
        "not a JSON object": 1,
        "blank line": 1,
    }
    assert loaded.dropped.examples["not JSON"] == "rows.jsonl:6"


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
    with pytest.raises(ValueError, match="is empty"):
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
    assert loaded.dropped.counts == {"also in math500": parts, "no answer": parts}


def test_choices_of_the_hub_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the columns that are needed are read, and unasked choices are among them."""
    import datasets

    rows = [{"problem": "Where?", "choices": ["Rome", "Oslo"], "answer": 1, "more": 1}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    with pytest.raises(ValueError, match="1 × its answer names one of its choices"):
        load(source="hub", name="org/set")


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


def test_a_mix_reads_each_source_its_own_way(tmp_path: Path) -> None:
    lines = write_jsonl(
        tmp_path / "a.jsonl", [{"id": "x", "problem": f"1+{n}", "answer": str(n), "difficulty": 3} for n in range(2)]
    )
    (tmp_path / "b.csv").write_text("q,a,id\n2+2,4,x\n2+3,,y\n")
    columns = {"problem": "q", "answer": "a"}
    mix = [
        {"source": "file", "path": lines},
        {"source": "file", "path": str(tmp_path / "b.csv"), "columns": columns},
    ]
    loaded = load(source="mix", mix=mix)
    whole = load_problems(
        DataConfig.model_validate({"source": "mix", "mix": mix}), split="train", seed=0, with_extra=True
    )
    assert [(p.id, p.part, p.answer) for p in loaded.problems] == [("0-x", 0, "0"), ("1-x", 1, "4")]
    assert loaded.dropped.counts == {"id seen before": 1, "no a": 1}
    # A reward function may also ask for a column that has a role, such as the level.
    assert [one.extra for one in whole.problems] == [{"id": "x", "difficulty": 3}, {"id": "x", "difficulty": None}]
    with pytest.raises(FileNotFoundError, match=r"data.mix.1.path: no such file"):
        load(source="mix", mix=[{"source": "arithmetic"}, {"source": "file", "path": "gone.csv"}])
    with pytest.raises(ValueError, match=r"data.mix.0.source is 'file'; data.mix.0.source: file needs data.mix.0.path"):
        load(source="mix", mix=[{"source": "file"}])
    with pytest.raises(ValueError, match=r"data.mix.0.path: .* say which it is with columns.problem=NAME there"):
        load(source="mix", mix=[{"source": "file", "path": str(tmp_path / "b.csv")}])
    for settings in ({"source": "mix"}, {"source": "gsm8k", "mix": [{"source": "math"}]}):
        with pytest.raises(ValueError, match="go together"):
            DataConfig.model_validate(settings)
    with pytest.raises(ValueError, match=r"data\.path applies to one source"):
        DataConfig.model_validate({"source": "mix", "mix": [{"source": "math"}], "path": "x"})


def test_the_level_is_a_range_of_the_columns_first_number(tmp_path: Path) -> None:
    levels = ("Level 2", 5, "?", 2.5, "3,5")
    rows = [{"problem": f"{n}", "answer": "1", "level": level} for n, level in enumerate(levels)]
    loaded = load(source="jsonl", path=write_jsonl(tmp_path / "r.jsonl", rows), level=(2, 2.5))
    assert [p.text for p in loaded.problems] == ["0", "3"]
    assert loaded.dropped.counts == {
        "level outside data.level (2 to 2.5)": 1,
        "its level (data.columns.level) has no number, or one with a comma, and data.level is given": 2,
    }
    rates = [{"problem": f"{n}", "answer": "1", "rate": n / 4} for n in range(5)]
    path = write_jsonl(tmp_path / "rates.jsonl", rates)
    columns = ColumnsConfig(level="rate")
    assert len(load(source="jsonl", path=path, level=(0.2, 0.8), columns=columns, limit=2).problems) == 2
    # Of generated sums the limit was taken first, which left two of these.
    assert len(load(source="arithmetic", level=(3, 3), limit=20).problems) == 20
    assert len(load(source="arithmetic", level=(0, 9), limit=20, arithmetic={"count": 10}).problems) == 20
    with pytest.raises(ValueError, match="the smaller bound comes first"):
        DataConfig(source="jsonl", level=(3, 1))


@pytest.mark.parametrize(
    ("level", "number"),
    [
        ("Level 5", 5),
        ("0.25", 0.25),
        # As some databases and statistics programs write fractions.
        (".25", 0.25),
        ("-.5", -0.5),
        ("1e-3", 0.001),
        ("-2", -2),
        # A hyphen or a full stop after a word is no sign and no point.
        ("level-3", 3),
        ("Lv.5", 5),
        ("5-6", 5),
        ("L3", 3),
        ("Level 4.", 4),
        # A quarter in a table saved in German, and 1500 or 1.5: neither 0 nor 1.
        ("0,25", None),
        ("1,500", None),
        ("3, but easy", 3),
        ("hard", None),
    ],
)
def test_the_number_in_a_level_is_the_one_that_is_written(level: str, number: float | None) -> None:
    assert number_in(level) == number


def test_a_hub_set_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(path: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((path, config, split, revision))
        if split == "nowhere":
            raise ValueError('Unknown split "nowhere".\nShould be one of [train]')
        return datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "m": {"a": 4}, "more": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"source": "hub", "name": "org/set", "subset": "easy", "split": "dev", "revision": "abc"}
    columns = ColumnsConfig(problem="prompt", answer="m.a")
    data = DataConfig(columns=columns, **hub)
    (problem,) = load_problems(data, split="train", seed=0, with_extra=True).problems
    assert (problem.id, problem.text, problem.answer) == ("org-set-easy-dev-0", "q", "4")
    assert problem.extra == {"m": {"a": 4}, "more": 1}
    assert asked == [("org/set", "easy", "dev", "abc")]
    (item,) = hub_items(data)
    assert (item.what, item.repo, item.revision) == ("data.name", "org/set", "abc")
    with pytest.raises(ValueError, match=r'^org/set: Unknown split "nowhere". Should be .*train. \(data.subset'):
        load(**{**hub, "split": "nowhere"})
    with pytest.raises(ValueError, match=r"needs data\.name"):
        load(source="hub")


def test_a_mix_counts_what_all_its_sources_drop(tmp_path: Path) -> None:
    """With the first example of each reason."""
    good, bad = {"problem": "1+1", "answer": "2"}, {"problem": "1+2"}
    paths = [write_jsonl(tmp_path / "a.jsonl", [good, bad]), write_jsonl(tmp_path / "b.jsonl", [bad, good, "{"])]
    loaded = load(source="mix", mix=[{"source": "file", "path": path} for path in paths])
    assert loaded.dropped.counts == {"no answer": 2, "not JSON": 1}
    assert loaded.dropped.examples == {"no answer": "a.jsonl:2", "not JSON": "b.jsonl:3"}


def test_the_datasets_of_a_mix_are_named_by_its_keys(tmp_path: Path) -> None:
    """MATH also needs the problems that it leaves out; what is read from a file or generated needs nothing."""
    columns = ColumnsConfig(level="hardness", subject="topic")
    hub = DataConfig(source="hub", name="org/set", subset="easy", columns=columns)
    assert dataset_of(hub) == HubDataset(path="org/set", configs=("easy",), level="hardness", subject="topic")
    assert dataset_of(DataConfig(source="math", path="mine.jsonl")) is None
    mix = DataConfig.model_validate(
        {"source": "mix", "mix": [{"source": "arithmetic"}, {"source": "math"}, {"source": "hub", "name": "org/set"}]}
    )
    assert [(item.what, item.repo) for item in hub_items(mix)] == [
        ("data.mix.1.source math", "EleutherAI/hendrycks_math"),
        ("data.mix.1.source math", "HuggingFaceH4/MATH-500"),
        ("data.mix.2.name", "org/set"),
    ]
    (one,) = hub_items(DataConfig(source="gsm8k"), "give a file")
    assert (one.what, one.repo, one.instead) == ("data.source gsm8k", "openai/gsm8k", "give a file")
    (here,) = hub_items(DataConfig(source="hub", name=str(tmp_path)))
    assert here.instead == f"it is a path here, for data.source=file data.path={tmp_path}"


def test_rows_without_an_answer_are_for_rewards_without_one(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": "1+1=?", "target": 2}, {"problem": "1+2=?"}])
    config = config_of(path)
    with pytest.raises(ValueError, match="no column 'answer'"):
        prepare(config, renderer, grader, ranks)
    rewards = RewardConfig(correct_weight=0, function="mine:it")
    data = prepare(config.model_copy(update={"rewards": rewards}), renderer, grader, ranks)
    assert [(one.problem.answer, one.problem.extra) for one in data.prompts] == [
        ("", {"target": 2}),
        ("", {"target": None}),
    ]
    assert data.extra_columns == ["target"]


def test_the_system_turn_of_a_chat_is_the_system_prompt(tmp_path: Path, grader: Grader, ranks: Ranks) -> None:
    from transformers import AutoTokenizer

    chat = [{"role": "system", "content": "1-1"}, {"role": "user", "content": "1+1=?"}]
    config = config_of(write_jsonl(tmp_path / "rows.jsonl", [{"problem": chat, "answer": "2"}]))
    tokenizer = AutoTokenizer.from_pretrained(locate_model("embedded"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + m.content }}{% endfor %}"
    for prompt, text in (
        (PromptConfig(instruction=None), "s1-1u1+1=?"),
        (PromptConfig(instruction=None, system="7"), "s7u1+1=?"),
        (PromptConfig(instruction=None, template="plain"), None),
    ):
        chosen = config.model_copy(update={"prompt": prompt})
        data = prepare(chosen, Renderer(tokenizer, prompt), grader, ranks)
        assert text is None or data.prompts[0].text == text
        assert ("system turn" in " ".join(data.repetitions(1))) == (text is None)


def test_problems_whose_chat_began_before_them_are_counted(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    """The earlier turns are examples, or a dialogue without which the question means nothing, but only the last user
    turn is asked."""
    user, model = {"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}
    chats = [[user], [user, model], [user, model, user], [model, user], [{"role": "system", "content": "3"}, user]]
    config = config_of(write_jsonl(tmp_path / "rows.jsonl", [{"problem": chat, "answer": "2"} for chat in chats]))
    data = prepare(config, renderer, grader, ranks)
    told = "2 problems come after other turns of a chat, and only the user's last turn is asked (for one, "
    assert sum(told in note for note in data.repetitions(1)) == 1
    assert [prompt.problem.continues for prompt in data.prompts] == [False, False, True, True, False]


# How a row becomes a prompt.


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
    assert data.dropped.counts.total() == 2
    assert data.dropped.examples["prompt over data.max_prompt_tokens (20)"] == "long"
    assert "dropped 1" in data.describe()
    assert "hopeless" in data.describe()


def test_hostile_rows_cost_neither_the_run_nor_its_time(
    tmp_path: Path, renderer: Renderer, grader: Grader, ranks: Ranks
) -> None:
    """A problem or answer of ten megabytes, endlessly nested JSON, half a surrogate pair: each is dropped with its
    reason."""
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
    assert time.process_time() - start < 5  # tokenizing that problem alone would take longer
    assert [prompt.problem.id for prompt in data.prompts] == ["good", "odd"]
    assert data.dropped.examples == {
        "not JSON": "rows.jsonl:4",
        "not valid text: it contains half of a surrogate pair": "rows.jsonl:5",
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
    assert not loaded.dropped.counts
    verdicts = {result.verdict for result in grader.check_references([p.answer for p in loaded.problems])}
    assert verdicts == {Verdict.CORRECT}
