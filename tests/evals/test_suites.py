"""Suites: their problems, and how they are prompted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from evals.suites import (
    ANSWER_FORMS,
    EMBEDDED_SUMS,
    SUITES,
    digest_of,
    find_suite,
    load_suite,
    origin_of,
    sampling_of,
    suite_files,
    suite_hub_items,
)
from rl_engine.config import load_config
from rl_engine.sft.embedded import QUICKSTART_SUMS
from rollout.config import ArithmeticConfig, DataConfig
from rollout.prompts.sources import SOURCES

DEFINED = {
    "held_out": (1, "ada886"),
    "gsm8k": (1, "27ec74"),
    "math500": (1, "427b0d"),
    "math": (1, "c1b74e"),
    "aime2024": (1, "5646fa"),
    "aime2025": (1, "8d9952"),
    "aime2026": (1, "2c73a0"),
}


def definition(name: str) -> str:
    """The first six hex digits of a digest of everything in the definition that can change a score."""
    suite = SUITES[name]
    source = SOURCES.get(suite.source)
    fields = {
        **dataclasses.asdict(dataclasses.replace(suite, version=0)),
        "answer_forms": ANSWER_FORMS,
        "data": (source.path, source.revision, source.configs, source.splits) if source else EMBEDDED_SUMS.model_dump(),
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:6]


def test_a_suite_changes_with_its_version_alone() -> None:
    """If this fails, the definition of a suite has changed: raise its version, then record both here."""
    assert {name: (suite.version, definition(name)) for name, suite in SUITES.items()} == DEFINED


def test_suites_come_from_known_sources_at_a_fixed_revision() -> None:
    for suite in SUITES.values():
        if suite.source != "arithmetic":
            revision = SOURCES[suite.source].revision
            assert revision is not None
            assert len(revision) == 40
            assert origin_of(suite, None) == f"{SOURCES[suite.source].path}@{revision}"
    with pytest.raises(ValueError, match="aime2024"):
        find_suite("aime")
    (item,) = suite_hub_items(SUITES["gsm8k"], None, "--suite", "give --data-dir DIR")
    assert (item.repo, item.what) == ("openai/gsm8k", "--suite gsm8k")
    assert not suite_hub_items(SUITES["gsm8k"], "data", "--suite", "")


def test_the_held_out_suite_is_fixed_and_the_quickstarts() -> None:
    held_out = load_suite(find_suite("held_out")).problems
    assert len(held_out) == 256
    assert load_suite(find_suite("held_out"), limit=10).problems == held_out[:10]
    assert load_config("quickstart.yaml").data.arithmetic == EMBEDDED_SUMS == QUICKSTART_SUMS
    other = load_suite(
        find_suite("held_out"),
        generated=(DataConfig(source="arithmetic", arithmetic=ArithmeticConfig(terms=(2,), largest=30)),),
    ).problems
    assert {problem.level for problem in other} == {"2"}
    assert digest_of(held_out) == digest_of(held_out[::-1]) != digest_of(other)


def write_rows(path: Path, count: int) -> None:
    rows = [{"id": f"{path.stem}-{i}", "problem": f"{path.stem} {i}", "answer": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_is_a_suite_and_a_suite_may_lie_in_two_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    write_rows(mine, 2)
    suite = find_suite(str(mine))
    assert suite.name == "mine"
    assert find_suite("elsewhere/aime2024.jsonl").name == "aime2024-file"
    assert [p.id for p in load_suite(suite).problems] == ["mine-0", "mine-1"]
    write_rows(tmp_path / "math500.jsonl", 2)
    write_rows(tmp_path / "math_test_minus500.jsonl", 3)
    found = load_suite(SUITES["math"], str(tmp_path), limit=4).problems
    assert [p.id for p in found] == ["math500-0", "math500-1", "math_test_minus500-0", "math_test_minus500-1"]
    write_rows(tmp_path / "math_test.jsonl", 1)
    assert suite_files(SUITES["math"], str(tmp_path)) == (str(tmp_path / "math_test.jsonl"),)


def test_parts_that_number_their_problems_alike_stay_apart(tmp_path: Path) -> None:
    """Samples are saved by id: two problems with the same id would share an answer."""
    for name, more in (("math500", 1), ("math_test_minus500", 9)):
        rows = [{"id": i, "problem": f"What is {i} + {more}?", "answer": str(i + more)} for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_suite(SUITES["math"], str(tmp_path)).problems
    assert [one.id for one in found] == ["0", "1", "math_test_minus500-0", "math_test_minus500-1"]
    assert [one.answer for one in found] == ["1", "2", "9", "10"]


@pytest.mark.parametrize(
    ("suite", "asked", "expected"),
    [
        ("gsm8k", {}, (1, 0.0, 1.0, 1024)),
        ("gsm8k", {"n": 8}, (8, 0.6, 0.95, 1024)),
        ("gsm8k", {"n": 8, "temperature": 1.0, "top_p": 0.9, "max_tokens": 9}, (8, 1.0, 0.9, 9)),
        ("aime2025", {}, (16, 0.6, 0.95, 32_768)),
        ("aime2025", {"n": 64}, (64, 0.6, 0.95, 32_768)),
        ("aime2025", {"temperature": 0.0}, (1, 0.0, 1.0, 32_768)),
    ],
)
def test_the_protocol_is_the_suites_unless_overridden(
    suite: str, asked: dict[str, float], expected: tuple[float, ...]
) -> None:
    chosen = sampling_of(SUITES[suite], **asked)  # type: ignore[arg-type]
    assert {"top_k", "min_p"}.isdisjoint(chosen.truncation())
    assert (chosen.n, chosen.temperature, chosen.top_p, chosen.max_tokens) == expected


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="the same one"):
        sampling_of(SUITES["gsm8k"], n=4, temperature=0.0)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gsm8k", "math500", "math", "aime2024", "aime2025", "aime2026"])
def test_suites_read_from_a_directory(name: str, shared_data: Path) -> None:
    assert len(load_suite(find_suite(name), str(shared_data)).problems) == SUITES[name].size
