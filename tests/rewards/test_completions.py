"""Golden completions, one per line in cases/completions.jsonl: what counts as the answer, and what is a trick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.extraction.marks import open_thought
from rewards.judge import judge_completion
from rewards.types import Verdict

CASES = Path(__file__).parent / "cases" / "completions.jsonl"


def cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", cases(), ids=lambda case: ascii(case["completion"])[:60])
def test_golden_completion(case: dict[str, Any]) -> None:
    forms, opened = tuple(case.get("answer_forms", ("boxed",))), open_thought(case.get("prompt", ""))
    judgement = judge_completion(case["completion"], case["reference"], forms=forms, opened=opened)
    assert (judgement.verdict is Verdict.CORRECT) == case["correct"], judgement


@pytest.mark.parametrize(
    ("completion", "form", "verdict"),
    [
        ("So the answer is 42.", "answer_is", "correct"),
        ("We add.\nFinal answer: $42$", "answer_is", "correct"),
        ("The answer is 41 or 42.", "answer_is", "incorrect"),
        ("The answer is 42.\nBut let me check.", "answer_is", "no_answer"),
        ("<think>The answer is 42.", "answer_is", "no_answer"),
        ("6 * 7 = 42\n#### 42", "gsm8k_hashes", "correct"),
        ("6 * 7 = 42\n#### 41", "gsm8k_hashes", "incorrect"),
        ("#### 42\nmore", "gsm8k_hashes", "no_answer"),
        ("\\boxed{42}", "gsm8k_hashes", "no_answer"),
        ("#### 42", "boxed", "no_answer"),
        ("The answer is 42.", "boxed", "no_answer"),
        ("\\boxed{", "boxed", "no_answer"),
        ("\\boxed{}", "boxed", "no_answer"),
    ],
)
def test_answer_forms(completion: str, form: str, verdict: str) -> None:
    assert judge_completion(completion, "42", forms=(form,)).verdict == verdict


def test_forms_are_tried_in_order() -> None:
    both = "\\boxed{41}\n#### 42"
    assert judge_completion(both, "42", forms=("boxed", "gsm8k_hashes")).verdict == "incorrect"
    assert judge_completion(both, "42", forms=("gsm8k_hashes", "boxed")).verdict == "correct"


@pytest.mark.parametrize("reference", ["", "  ", "?", "...", "nan", "$$", "\\text{}", "\x00", "\ud800", "{" * 5000])
def test_a_meaningless_reference_rewards_nobody(reference: str) -> None:
    for answer in ("42", reference, "?"):
        assert judge_completion("\\boxed{" + answer + "}", reference, forms=("boxed",)).verdict != "correct"


def test_unparseable_is_not_incorrect() -> None:
    assert judge_completion(r"\boxed{\frac{1}{}}", r"\frac{1}{2}", forms=("boxed",)).verdict == "unparseable"
    assert judge_completion(r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", forms=("boxed",)).verdict == "incorrect"
