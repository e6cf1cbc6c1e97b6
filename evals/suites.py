"""Suite name → problems, and how they are prompted, sampled and graded.

A suite's version goes up with any change that can change a score: to its problems, the sentence after them, the
sampling, the answer form, or a rule in docs/rewards.md that applies to its answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datafiles.cells import has_column
from datafiles.formats import HELD_OUT, check_file, is_file_name, stem_of
from datafiles.rows import rows_of
from rewards.config import AnswerForm
from rollout.config import ArithmeticConfig, ColumnsConfig, DataConfig, SamplingConfig
from rollout.frames import BOXED_INSTRUCTION
from rollout.hub import HubItem
from rollout.prompts.problems import ARITHMETIC, GENERATED, Loaded, hub_items, load_problems, parts_of
from rollout.prompts.sources import SOURCES
from rollout.types import Problem

NO_COLUMNS = ColumnsConfig()
GENERATED_SUITE = "held_out"
"""The suite of generated problems that training never uses."""
HELD_OUT_SEED = 1
HELD_OUT_COUNT = 256
EMBEDDED_SUMS = ArithmeticConfig(terms=(3, 4, 5, 6), largest=20)
ASKED_OF_EMBEDDED = (DataConfig(source=ARITHMETIC, arithmetic=EMBEDDED_SUMS),)
"""The problems of `held_out` if the training data is not known: those of the embedded example."""
GENERATOR = ARITHMETIC
"""`Suite.source` of generated suites, whatever the generator."""
ANSWER_FORMS: tuple[AnswerForm, ...] = ("boxed",)
"""Where `python -m evals` looks for answers in all suites; a training run has its own setting."""
# For several samples of a suite whose protocol is greedy: the values that models are usually published with.
SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 0.6, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A fixed set of problems with a protocol. Training uses only the problems, with its own `eval` settings.

    Example: `SUITES["aime2024"]`
    """

    name: str
    version: int
    source: str
    """Its entry in the table of sources, which has the dataset's revision; or `GENERATOR`, or `jsonl` for a file."""
    file: str = ""
    """The name of its file in a data directory, without `.jsonl`; for a `jsonl` suite the path, in any format."""
    parts: tuple[str, ...] = ()
    """Files that together hold the suite, for a directory without `file`."""
    size: int | None = None
    """The number of problems in the whole suite; any other number means damaged or different data."""
    instruction: str | None = BOXED_INSTRUCTION
    """The sentence after the problem."""
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int


def _aime(year: int) -> Suite:
    # At p = 0.2, 30 problems have a standard error of 7.3 points with one sample each, and of 1.8 with 16.
    name = f"aime{year}"
    return Suite(
        name=name, version=1, source=name, file=name, size=30, n=16, temperature=0.6, top_p=0.95, max_tokens=32_768
    )


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(name=GENERATED_SUITE, version=1, source=GENERATOR, size=HELD_OUT_COUNT, instruction=None, max_tokens=72),
        Suite(name="gsm8k", version=1, source="gsm8k_test", file="gsm8k_test", size=1319, max_tokens=1024),
        Suite(name="math500", version=1, source="math500", file="math500", size=500, max_tokens=4096),
        Suite(
            name="math",
            version=1,
            source="math_test",
            file="math_test",
            parts=("math500", "math_test_minus500"),
            size=5000,
            max_tokens=4096,
        ),
        *(_aime(year) for year in (2024, 2025, 2026)),
    )
}


def find_suite(name: str, key: str = "--suite") -> Suite:
    """The suite with that name, or a suite made from that file of problems.

    Raises `ValueError`, which begins with the setting or option `key`, if the name is neither.
    """
    if name in SUITES:
        return SUITES[name]
    if is_file_name(name):
        return Suite(name=suite_name(name), version=1, source="jsonl", file=name, max_tokens=4096)
    raise ValueError(f"{key}: no suite {name!r}: known are {', '.join(SUITES)}, or give a file of problems")


def suite_name(name: str) -> str:
    """The suite's name in reports. A suite made from a file is called after it, but never the same as one in SUITES."""
    if name in SUITES or not is_file_name(name):
        return name
    stem = stem_of(name)
    return f"{stem}-file" if stem in SUITES else stem


def suite_hub_items(suite: Suite, data_dir: str | None, key: str, instead: str) -> list[HubItem]:
    """What reading the suite needs from the hub. `key` is the setting or option that named the suite."""
    if suite.source in (GENERATOR, "jsonl") or data_dir is not None:
        return []
    items = hub_items(DataConfig(source=suite.source), instead)
    return [replace(item, what=f"{key} {suite.name}") for item in items]


def sampling_of(
    suite: Suite,
    *,
    n: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float = 0.0,
    max_tokens: int | None = None,
) -> SamplingConfig:
    """The suite's sampling with the given overrides.

    Several samples of a greedy suite are drawn at temperature 0.6, top_p 0.95; greedy sampling of any suite draws one
    sample. Raises `ValueError` for several greedy samples.
    """
    samples = n or (1 if temperature == 0 else suite.n)
    several = samples > 1 and suite.temperature == 0
    chosen = temperature if temperature is not None else SAMPLED_TEMPERATURE if several else suite.temperature
    if chosen == 0 and samples > 1:
        raise ValueError(
            f"{samples} samples at temperature 0 are the same one; give a temperature above 0, or 1 sample"
        )
    return SamplingConfig(
        n=samples,
        temperature=chosen,
        top_p=top_p or (1.0 if chosen == 0 else SAMPLED_TOP_P if several else suite.top_p),
        top_k=top_k,
        min_p=min_p,
        max_tokens=max_tokens or suite.max_tokens,
    )


def load_suite(
    suite: Suite,
    data_dir: str | None = None,
    limit: int | None = None,
    generated: Sequence[DataConfig] = ASKED_OF_EMBEDDED,
    *,
    columns: ColumnsConfig = NO_COLUMNS,
    data_dir_key: str = "--data-dir",
    column_option: str = "--{role}={name}",
    with_extra: bool = False,
) -> Loaded:
    """The suite's problems, in their own order, and the rows that were dropped.

    `held_out` takes its problems from the held-out parts of the `generated` sources, which training never sees, in
    equal numbers. `columns` names the problem and answer columns of a suite that is a file. In messages, `data_dir_key`
    stands for the directory and `column_option` for the option that names a column; `with_extra` as in `load_problems`.
    """
    loaded = Loaded([])
    if suite.source == GENERATOR:
        share = math.ceil((limit or HELD_OUT_COUNT) / len(generated))
        for source in generated:
            data = source.model_copy(update={"limit": share})
            loaded.problems.extend(
                load_problems(data, split="held_out", seed=HELD_OUT_SEED, with_extra=with_extra).problems
            )
        return Loaded(loaded.problems[: limit or HELD_OUT_COUNT])
    check_suite_files(suite, data_dir, data_dir_key)
    for path in suite_files(suite, data_dir) or (None,):
        key = f"suite {suite.name}"
        own = columns_in(path, columns, key) if suite.source == "jsonl" and path else NO_COLUMNS
        data = DataConfig(source=suite.source, path=path, split=HELD_OUT, columns=own)
        part = load_problems(
            data, split="held_out", seed=HELD_OUT_SEED, key=key, column_option=column_option, with_extra=with_extra
        )
        # Samples are saved by id, and two files may have used the same ids.
        taken = {problem.id for problem in loaded.problems}
        loaded.problems.extend(
            replace(one, id=f"{Path(path or suite.name).stem}-{one.id}") if one.id in taken else one
            for one in part.problems
        )
        loaded.dropped.add(part.dropped)
    return Loaded(loaded.problems[:limit], loaded.dropped)


def check_suite_files(suite: Suite, data_dir: str | None, data_dir_key: str) -> None:
    """Raise `FileNotFoundError` for a missing directory or file, and `TextFileError` for a file whose first bytes show
    that it holds no problems."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"{data_dir_key}: no such directory: {data_dir}")
    for file in map(Path, suite_files(suite, data_dir)):
        if suite.source != "jsonl" and not file.exists():
            there = ", ".join(sorted(path.name for path in file.parent.glob("*.jsonl"))) or "no .jsonl file"
            raise FileNotFoundError(
                f"{data_dir_key}: {data_dir} has no {file.name} for the suite {suite.name}: {there}"
            )
        check_file(file, f"suite {suite.name}")


def columns_in(path: str, columns: ColumnsConfig, key: str) -> ColumnsConfig:
    """The given columns that the first row of a file has."""
    _, row = next(rows_of(Path(path), lambda *_: None, key, HELD_OUT), ("", {}))
    return ColumnsConfig(**{role: name for role, name in columns if name is not None and has_column(row, name)})


def generated_by(data: DataConfig) -> tuple[DataConfig, ...]:
    """The sources of `held_out` in a run on this data: its generated sources, each once, or the sums if it has none."""
    parts = [part.config for part in parts_of(data) if part.config.source in GENERATED]
    bare = [
        DataConfig(source=one.source, arithmetic=one.arithmetic, task=one.task, task_settings=one.task_settings)
        for one in parts
    ]
    return tuple(one for place, one in enumerate(bare) if one not in bare[:place]) or (
        DataConfig(source=ARITHMETIC, arithmetic=data.arithmetic),
    )


def suite_files(suite: Suite, data_dir: str | None) -> tuple[str, ...]:
    """The files that a suite is read from; none if it comes from the hub or a generator."""
    if suite.source == "jsonl":
        return (suite.file,)
    if suite.source == GENERATOR or data_dir is None:
        return ()
    single, *parts = (str(Path(data_dir) / f"{name}.jsonl") for name in (suite.file, *suite.parts))
    split = bool(parts) and not Path(single).is_file() and all(Path(part).is_file() for part in parts)
    return tuple(parts) if split else (single,)


def origin_of(suite: Suite, data_dir: str | None, generated: Sequence[DataConfig] = ASKED_OF_EMBEDDED) -> str:
    """Where the problems come from, for messages: hub dataset and revision, file names, or the generator."""
    files = suite_files(suite, data_dir)
    if files:
        return " + ".join(Path(file).name for file in files)
    if suite.source == GENERATOR:
        tasks = [f"{one.source} {one.task} {json.dumps(one.task_settings)}" for one in generated if one.task]
        return f"{', '.join(tasks) or 'generator'}, held-out part, seed {HELD_OUT_SEED}"
    dataset = SOURCES[suite.source]
    return f"{dataset.path}@{dataset.revision or 'main'}"


def digest_of(problems: Sequence[Problem]) -> str:
    """SHA-256 of the texts, system turns and answers, independent of their order: equal digests mean the same
    problems."""
    lines = sorted(json.dumps([one.text, one.answer, *([one.system] if one.system else [])]) for one in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
