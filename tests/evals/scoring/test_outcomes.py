"""Graded samples of one problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from evals.scoring.outcomes import Outcome, Sample, grade_groups, outcome_of
from rewards import GradeItem, Grader, GradeResult, Verdict
from rollout.types import Problem, Prompt, RolloutGroup
from tests.helpers.builders import completion, prompt, result


def test_an_outcome_survives_its_file() -> None:
    problem = Problem(id="a", text="?", answer="1")
    sample = Sample(
        text="½ \ud800", extracted=None, verdict=Verdict.TIMEOUT, detail="d", tokens=3, finish_reason="length"
    )
    outcome = Outcome(problem=problem, adapter="base", samples=(sample,), sampling_s=0.5)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json())), problem) == outcome


def test_a_thought_opened_by_the_prompt_holds_no_answer(grader: Grader) -> None:
    """The completion may close the thought, and its answer then counts."""
    opened = prompt("?<|assistant|>\n<think>\n", problem="?", answer="1")
    said = (r"\boxed{1} or so", r"maybe 2</think>\boxed{1}")
    group = RolloutGroup(prompt=opened, completions=tuple(completion(text) for text in said))
    (outcome,) = grade_groups([group], grader, max_tokens=8, sampling_s=0.0)
    assert [sample.verdict for sample in outcome.samples] == [Verdict.NO_ANSWER, Verdict.CORRECT]


def test_the_grader_is_told_what_a_reward_function_may_read() -> None:
    asked: list[GradeItem] = []

    def grade(items: Sequence[GradeItem]) -> list[GradeResult]:
        asked.extend(items)
        return [result(extracted=str(place)) for place, _ in enumerate(items)]

    groups = [
        RolloutGroup(
            prompt=Prompt(
                problem=Problem(id=name, text=f"of {name}", answer=name, extra={"b": name}, entry={"a": name}),
                text=f"<{name}>",
                token_ids=(),
            ),
            completions=(completion(f"{name}2", tokens=2), completion(f"{name}5", tokens=5, finish_reason="length")),
        )
        for name in ("x", "y")
    ]
    graded = grade_groups(groups, cast("Grader", SimpleNamespace(grade=grade)), max_tokens=8, sampling_s=3.0)
    assert asked == [
        GradeItem(
            completion=f"{name}{tokens}",
            reference=name,
            tokens=tokens,
            max_tokens=8,
            problem=f"of {name}",
            prompt=f"<{name}>",
            truncated=tokens == 5,
            extra={"b": name},
            entry={"a": name},
        )
        for name in ("x", "y")
        for tokens in (2, 5)
    ]
    assert [[sample.extracted for sample in outcome.samples] for outcome in graded] == [["0", "1"], ["2", "3"]]
    assert [(outcome.problem.id, outcome.sampling_s) for outcome in graded] == [("x", 1.5), ("y", 1.5)]


def test_completions_of_two_adapters_are_no_outcome() -> None:
    group = RolloutGroup(prompt=prompt(), completions=(completion(adapter="a"), completion(adapter="b")))
    with pytest.raises(ValueError, match="several adapters: a, b"):
        outcome_of(group, [result(), result()])
