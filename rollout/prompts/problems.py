"""Nothing → problems: hub data sets, JSON Lines files, the arithmetic generator; one table names them.

A source yields rows; a row becomes a `Problem` or a counted reason why it did not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollout.config import ColumnsConfig, DataConfig
from rollout.prompts.arithmetic import Split, arithmetic_problems
from rollout.prompts.formats import refuse_other_formats
from rollout.text_files import text_lines
from rollout.types import Problem

Row = Mapping[str, Any]
# Files follow the project's own names, whatever the hub's copy of a data set calls its columns.
OWN_COLUMNS = ColumnsConfig(problem="problem", answer="answer", level="level", subject="subject", id="id")
# What others call them, to guess by.
OTHER_NAMES = {
    "problem": ("question", "prompt", "query", "input", "instruction", "text", "problem_text", "problem_statement"),
    "answer": ("final_answer", "expected_answer", "ground_truth", "reference", "target", "label", "output", "solution"),
}


def after_hashes(row: Row) -> str:
    """GSM8K writes the answer after `####`, with thousands separators."""
    return str(row["answer"]).rpartition("####")[2].replace(",", "").strip()


def last_box(row: Row) -> str:
    """MATH writes the answer in the last `\\boxed{…}` (or `\\fbox{…}`) of the solution."""
    solution = str(row["solution"])
    start = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
    if start < 0:
        return ""
    depth = 0
    opened = solution.index("{", start)
    for position in range(opened, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0:
            return solution[opened + 1 : position]
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A data set of the hub, and which of its columns is what."""

    path: str
    revision: str | None = None
    """Commit; the newest when absent. Evaluation suites have one, so that a score names what it was measured on."""
    configs: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("train",)
    problem: str = "problem"
    answer: str | Callable[[Row], str] = "answer"
    reads: tuple[str, ...] = ()
    """Further columns that a callable `answer` needs."""
    level: str | None = None
    subject: str | None = None
    excludes: str | None = None
    """Name of a source whose problems are left out: MATH without MATH-500."""


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

SOURCES: dict[str, HubDataset] = {
    "gsm8k": HubDataset(
        path="openai/gsm8k", configs=("main",), problem="question", answer=after_hashes, reads=("answer",)
    ),
    "gsm8k_test": HubDataset(
        path="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        configs=("main",),
        splits=("test",),
        problem="question",
        answer=after_hashes,
        reads=("answer",),
    ),
    "math": HubDataset(
        path="EleutherAI/hendrycks_math",
        configs=MATH_SUBJECTS,
        splits=("train", "test"),
        answer=last_box,
        reads=("solution",),
        level="level",
        subject="type",
        excludes="math500",
    ),
    "math_test": HubDataset(
        path="EleutherAI/hendrycks_math",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        configs=MATH_SUBJECTS,
        splits=("test",),
        answer=last_box,
        reads=("solution",),
        level="level",
        subject="type",
    ),
    "math500": HubDataset(
        path="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        splits=("test",),
        level="level",
        subject="subject",
    ),
    # The other columns of DeepMath-103K are 2 GB of solutions.
    "deepmath": HubDataset(
        path="zwhe99/DeepMath-103K",
        problem="question",
        answer="final_answer",
        level="difficulty",
        subject="topic",
    ),
    "aime2024": HubDataset(path="HuggingFaceH4/aime_2024", revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "aime2025": HubDataset(
        path="math-ai/aime25", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b", splits=("test",)
    ),
    "aime2026": HubDataset(path="MathArena/aime_2026", revision="10b4e45b7a503075d4da8a0d57916a4f06ce6bd2"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source gave, and what it did not, by reason."""

    problems: list[Problem]
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """One dropped row for each reason, so that a person can look it up."""

    def drop(self, reason: str, example: str) -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, example)


def needs_hub(config: DataConfig) -> bool:
    return config.source in SOURCES and config.path is None


def load_problems(config: DataConfig, *, split: Split, seed: int, key: str = "data.path") -> Loaded:
    """The problems of a source, in the source's own order.

    `split` and `seed` matter to the generator alone: the other sources hold one split each. `key` is what a message
    calls the place where a file was named.
    Raises `ValueError` for an unknown source or a file without usable rows, `FileNotFoundError` for a missing one.
    """
    if config.source == "arithmetic":
        count = config.limit or config.arithmetic.count
        return Loaded(arithmetic_problems(config.arithmetic, split, count, seed))
    if config.path is not None:
        loaded = read_jsonl(Path(config.path), config.columns, key)
    elif config.source in SOURCES:
        loaded = read_hub(config.source, SOURCES[config.source], config.columns)
    else:
        known = ", ".join(["arithmetic", "jsonl", *SOURCES])
        hint = "data.source: jsonl needs data.path" if config.source == "jsonl" else f"known are {known}"
        raise ValueError(f"data.source is {config.source!r}; {hint}")
    kept = loaded.problems[: config.limit]
    if not kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in loaded.dropped.items()) or "it is empty"
        where = f"{key}: {config.path}" if config.path is not None else f"data.source {config.source!r}"
        raise ValueError(f"{where} has no usable problem: {reasons}")
    return Loaded(kept, loaded.dropped, loaded.examples)


def _or_default(chosen: ColumnsConfig, defaults: ColumnsConfig) -> ColumnsConfig:
    return defaults.model_copy(update={name: value for name, value in chosen if value is not None})


def jsonl_rows(path: Path, drop: Callable[[str, str], None], key: str) -> Iterator[tuple[str, Row]]:
    """(where, row) of a JSON Lines file; a line that is not a JSON object is dropped with a reason.

    Raises `FileNotFoundError` where none is, and `TextFileError` for a file of another format or encoding.
    """
    refuse_other_formats(path, key)
    for number, line in text_lines(path):
        where = f"{path.name}:{number}"
        if not line.strip():
            drop("blank line", where)
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            drop("not JSON", where)
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            drop("not a JSON object", where)


def read_jsonl(path: Path, columns: ColumnsConfig, key: str) -> Loaded:
    """Problems of a JSON Lines file."""
    chosen = _or_default(columns, OWN_COLUMNS)
    loaded = Loaded([])
    loaded.problems.extend(problems_of(jsonl_rows(path, loaded.drop, key), chosen, None, loaded.drop))
    if not loaded.problems:
        _explain_columns(path, chosen, key)
    return loaded


def first_problem(config: DataConfig) -> Problem | None:
    """The first usable problem of a file or of the generator, read without the rest; None for a data set of the hub."""
    if config.source == "arithmetic":
        return arithmetic_problems(config.arithmetic, "train", 1, seed=0)[0]
    if config.path is None:
        return None
    rows = jsonl_rows(Path(config.path), lambda *_: None, "data.path")
    return next(problems_of(rows, _or_default(config.columns, OWN_COLUMNS), None, lambda *_: None), None)


def _explain_columns(path: Path, columns: ColumnsConfig, key: str) -> None:
    """Raises `ValueError` when the first row has other columns than those that are read: then all have."""
    _, row = next(jsonl_rows(path, lambda *_: None, key), ("", None))
    wanted = {"problem": columns.problem, "answer": columns.answer}
    missing = {role: column for role, column in wanted.items() if row is not None and column not in row}
    if row is None or not missing:
        return
    there = [str(name) for name in row]
    guesses = {role: next((name for name in there if name.lower() in OTHER_NAMES[role]), None) for role in missing}
    ways = [f"data.columns.{role}={guess or 'NAME'}" for role, guess in guesses.items()]
    way = f"say which it is with {' '.join(ways)}" if key == "data.path" else "rename them in the file"
    raise ValueError(
        f"{key}: {path} has no column {' and no column '.join(map(repr, missing.values()))}; its columns are "
        f"{', '.join(there)}: {way}"
    )


def read_hub(name: str, dataset: HubDataset, chosen: ColumnsConfig) -> Loaded:
    """Rows of a hub data set; only the named columns are read."""
    import datasets  # heavy, and only needed where the hub is

    own = ColumnsConfig(
        problem=dataset.problem,
        answer=dataset.answer if isinstance(dataset.answer, str) else None,
        level=dataset.level,
        subject=dataset.subject,
    )
    columns = _or_default(chosen, own)
    extract = dataset.answer if callable(dataset.answer) and chosen.answer is None else None
    wanted = {c for c in (columns.problem, columns.answer, columns.level, columns.subject, columns.id) if c}
    wanted.update(dataset.reads)
    excluded = _excluded_texts(dataset)
    loaded = Loaded([])

    def rows() -> Iterator[tuple[str, Row]]:
        for config in dataset.configs:
            for split in dataset.splits:
                part = datasets.load_dataset(dataset.path, config, split=split, revision=dataset.revision)
                missing = wanted - set(part.column_names)
                if missing:
                    raise ValueError(
                        f"{dataset.path} has no column {', '.join(sorted(missing))}; "
                        f"it has {', '.join(part.column_names)} (set data.columns)"
                    )
                for index, row in enumerate(part.select_columns(sorted(wanted))):
                    where = "-".join([name, *([config] if config else []), split, str(index)])
                    if row[columns.problem].strip() in excluded:
                        loaded.drop(f"also in {dataset.excludes}", where)
                    else:
                        yield where, row

    loaded.problems.extend(problems_of(rows(), columns, extract, loaded.drop))
    return loaded


def _excluded_texts(dataset: HubDataset) -> frozenset[str]:
    if dataset.excludes is None:
        return frozenset()
    other = read_hub(dataset.excludes, SOURCES[dataset.excludes], ColumnsConfig())
    return frozenset(problem.text for problem in other.problems)


def _is_text(text: str) -> bool:
    """JSON can spell what no encoding can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def problems_of(
    rows: Iterable[tuple[str, Row]],
    columns: ColumnsConfig,
    extract: Callable[[Row], str] | None,
    drop: Callable[[str, str], None],
) -> Iterator[Problem]:
    """Rows as problems, without those that have no problem, no answer, an id seen before, or a list where text is
    due."""
    seen: set[str] = set()
    texts = [column for column in (columns.problem, None if extract else columns.answer) if column]

    def text(row: Row, column: str | None) -> str:
        value = row.get(column) if column else None
        return "" if value is None else str(value).strip()

    for where, row in rows:
        problem = text(row, columns.problem)
        answer = extract(row) if extract else text(row, columns.answer)
        identifier = text(row, columns.id) or where.replace(":", "-")
        listed = [column for column in texts if isinstance(row.get(column), list | dict)]
        if listed:
            drop(f"{listed[0]} is a {'list' if isinstance(row[listed[0]], list) else 'mapping'}, not a text", where)
        elif not problem:
            drop(f"no {columns.problem}", where)
        elif not answer:
            drop(f"no {columns.answer or 'answer'}", where)
        elif identifier in seen:
            drop("id seen before", where)
        elif not _is_text(identifier + problem + answer):
            drop("not text: half of a surrogate pair", where)
        else:
            seen.add(identifier)
            yield Problem(
                id=identifier,
                text=problem,
                answer=answer,
                level=text(row, columns.level),
                subject=text(row, columns.subject),
            )
