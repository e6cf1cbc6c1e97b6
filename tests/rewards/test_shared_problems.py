"""Real references and the graded development answers; skipped if the shared files are absent."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reference_forms import cases, misjudged
from rewards import Grader
from rewards.extraction.marks import open_thought
from rewards.judge import judge_completion, same_answer
from rewards.types import Verdict
from tests.helpers.both_paths import changed_by_short_cuts

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="the shared files are not here")]


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["verifier_dev.jsonl", "verifier_dev2.jsonl"])
def test_every_development_case_is_judged_as_expected(name: str) -> None:
    wrong = []
    for case in rows(name):
        forms, opened = tuple(case.get("answer_forms", ("boxed",))), open_thought(case.get("prompt", ""))
        judgement = judge_completion(case["completion"], case["gold"], forms=forms, opened=opened)
        if (judgement.verdict is Verdict.CORRECT) != case["expected"]:
            wrong.append((case["id"], case["gold"], judgement))
    assert not wrong


@pytest.mark.parametrize("name", ["math500.jsonl", "aime2024.jsonl", "aime2025.jsonl", "aime2026.jsonl"])
def test_every_reference_is_correct_against_itself(grader: Grader, name: str) -> None:
    references = [row["answer"] for row in rows(name)]
    failed = [
        r for r, result in zip(references, grader.check_references(references), strict=True) if result.reward != 1.0
    ]
    assert not failed


def test_references_are_known_in_other_forms(grader: Grader) -> None:
    """A sample; `python -m benchmarks.reference_forms` checks two thousand references."""
    assert misjudged(grader, cases(SHARED, 80)) == []


def test_the_fast_path_never_changes_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Development cases, MATH-500 references against themselves and their neighbours, and GSM8K integers."""
    pairs = [(case["completion"], case["gold"]) for case in rows("verifier_dev.jsonl")]
    answers = [judge_completion(text, gold, forms=("boxed",)).extracted for text, gold in pairs]
    compared = [(answer, gold) for answer, (_, gold) in zip(answers, pairs, strict=True) if answer is not None]
    for name in ("math500.jsonl", "gsm8k_test.jsonl"):
        references = [row["answer"] for row in rows(name)][:500]
        compared += [(reference, reference) for reference in references]
        compared += list(itertools.pairwise(references))
    assert changed_by_short_cuts(compared, monkeypatch) == []


def test_different_references_are_different() -> None:
    """No MATH-500 reference equals the next one unless both have the same value, so the comparison is not too
    lenient."""
    references = sorted({row["answer"] for row in rows("math500.jsonl")})
    equal = {
        (one, other) for one, other in itertools.pairwise(references) if same_answer(other, one)[0] is Verdict.CORRECT
    }
    bare = re.compile(r"\^\\circ|\\mbox\{.*|\\text\{.*|[\\$\s]")
    assert all(bare.sub("", one) == bare.sub("", other) for one, other in equal), equal
