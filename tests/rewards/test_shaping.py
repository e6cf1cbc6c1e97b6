"""Shaping terms against values worked out by hand, configuration errors, and users' functions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rewards import GradeItem, Grader, RewardConfig, Verdict
from rewards.shaping import format_term, overlong_term, repetition_term, shaping_terms

pytestmark = pytest.mark.usefixtures("warm_graders")


@pytest.mark.parametrize(
    ("completion", "think", "value"),
    [
        ("so \\boxed{1}", False, 1.0),
        ("so \\boxed{1} and \\boxed{1}", False, 0.0),
        ("so 1", False, 0.0),
        ("<think>a \\boxed{2}</think> \\boxed{1}", False, 1.0),
        ("<think>a</think> \\boxed{1}", True, 1.0),
        ("\\boxed{1}", True, 0.0),
        ("b <think>a</think> \\boxed{1}", True, 0.0),
        ("<think>a \\boxed{1}", False, 0.0),
        ("<think>a</think><think>b</think> \\boxed{1}", True, 0.0),
        ("</think>a<think> \\boxed{1}", True, 0.0),
        ("\\boxed{1} \\boxed{", False, 0.0),
        ("\\boxed{\\boxed{1}}", False, 0.0),
    ],
)
def test_format(completion: str, think: bool, value: float) -> None:
    assert format_term(completion, think=think) == value


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("a</think> \\boxed{1}", 1.0),
        ("a \\boxed{2}</think> \\boxed{1}", 1.0),
        ("a \\boxed{1}", 0.0),
        ("\\boxed{1}", 0.0),
        ("<think>a</think> \\boxed{1}", 0.0),
        ("a</think> b</think> \\boxed{1}", 0.0),
        ("a[/THINK] \\boxed{1}", 0.0),
        ("a</think> 1", 0.0),
    ],
)
@pytest.mark.parametrize("think", [False, True])
def test_a_thought_opened_by_the_prompt_is_closed(completion: str, think: bool, value: float) -> None:
    config = RewardConfig(format_weight=1.0, format_think=think)
    item = GradeItem(completion=completion, reference="1", prompt="2 - 1?<|assistant|>\n<think>\n")
    assert shaping_terms(item, config) == {"format": value}


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (500, -1.0), (None, 0.0)]
)
def test_overlong_is_linear_in_the_buffer(tokens: int | None, value: float) -> None:
    assert overlong_term(tokens, 100, buffer=20) == pytest.approx(value)
    assert overlong_term(tokens, None, buffer=20) == 0.0


def test_repetition() -> None:
    assert repetition_term("a b c d e f", ngram=2) == 0.0
    assert repetition_term("a b a b a b", ngram=2) == pytest.approx(-0.6)  # 5 pairs, 2 of them distinct
    assert repetition_term("a", ngram=2) == 0.0
    assert repetition_term("loop " * 100_000, ngram=20) < -0.99


def test_terms_are_added_with_their_weights() -> None:
    config = RewardConfig(
        workers=1,
        format_weight=0.2,
        overlong_weight=1.0,
        overlong_buffer_tokens=20,
        repetition_weight=0.5,
        repetition_ngram=2,
    )
    items = [
        GradeItem(completion="\\boxed{5}", reference="5", tokens=90, max_tokens=100),
        GradeItem(completion="a b a b a b", reference="5", tokens=10, max_tokens=100),
    ]
    with Grader.from_config(config) as grader:
        right, nothing = grader.grade(items)
    assert right.terms == pytest.approx({"format": 0.2, "overlong": -0.5, "repetition": 0.0})
    assert right.reward == pytest.approx(0.7)
    assert nothing.verdict == "no_answer"
    assert nothing.terms == pytest.approx({"format": 0.0, "overlong": 0.0, "repetition": -0.3})
    assert nothing.reward == pytest.approx(-0.3)


def test_everything_is_off_by_default() -> None:
    with Grader(workers=1) as grader:
        (result,) = grader.grade([GradeItem(completion="\\boxed{5}", reference="5", tokens=90, max_tokens=90)])
    assert result.reward == 1.0
    assert result.terms == {}


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"memory_mib": 10}, "memory_mib"),
        ({"answer_forms": []}, "answer_forms"),
        ({"answer_forms": ["last_number"]}, "answer_forms"),
        ({"overlong_weight": 1.0}, "overlong_buffer_tokens"),
        ({"function": "no_colon"}, "package.module:name"),
        ({"function_arguments": {"a": 1}}, "function_arguments needs function"),
        ({"wokers": 2}, "wokers"),
    ],
)
def test_a_bad_section_is_refused_by_name(section: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        RewardConfig.model_validate(section)


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in RewardConfig.model_fields.values())


def test_trl_functions_by_name() -> None:
    pytest.importorskip("trl")
    config = RewardConfig(workers=1, function="trl:think_format_reward", correct_weight=0.0, function_weight=0.5)
    with Grader.from_config(config) as grader:
        good, bad = grader.grade([("<think>a</think>\\boxed{5}", "5"), ("\\boxed{5}", "5")])
    assert (good.verdict, good.reward) == ("correct", 0.5)
    assert (bad.verdict, bad.reward) == ("correct", 0.0)


def test_trls_format_reward_sees_the_thought_that_was_opened() -> None:
    pytest.importorskip("trl")
    config = RewardConfig(workers=1, function="trl:think_format_reward", correct_weight=0.0)
    said = ("a</think>\\boxed{5}", "a \\boxed{5}")
    with Grader.from_config(config) as grader:
        closed, unfinished = grader.grade(
            [GradeItem(completion=text, reference="5", prompt="2+3?<|assistant|>\n<think>\n") for text in said]
        )
    assert (closed.verdict, closed.reward) == ("correct", 1.0)
    assert (unfinished.verdict, unfinished.reward) == ("no_answer", 0.0)


def test_a_trl_function_that_takes_arguments() -> None:
    pytest.importorskip("trl")
    config = RewardConfig(
        workers=1,
        function="trl:get_soft_overlong_punishment",
        function_arguments={"max_completion_len": 100, "soft_punish_cache": 20},
    )
    with Grader.from_config(config) as grader:
        (result,) = grader.grade([GradeItem(completion="\\boxed{5}", reference="5", tokens=90)])
    assert result.terms == {"function": -0.5}


@pytest.mark.parametrize("path", ["no_such_module_anywhere:name", "math:no_such_name"])
def test_a_function_that_cannot_be_loaded_is_an_error(path: str) -> None:
    """It does not count as a wrong answer."""
    with Grader.from_config(RewardConfig(workers=1, function=path)) as grader:
        (result,) = grader.grade([("\\boxed{5}", "5")])
    assert result.verdict == "error"
    assert path in result.detail
    assert result.reward == 0.0


def box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def test_what_was_cut_off_is_masked_where_that_is_asked_for() -> None:
    """The verdict is kept, but the item earns no reward and no penalty."""
    items = [GradeItem(completion=box("5"), reference="5", truncated=cut) for cut in (False, True)]
    for masked in (False, True):
        with Grader.from_config(RewardConfig(workers=1, mask_truncated=masked, format_weight=0.5)) as grader:
            whole, cut = grader.grade(items)
        assert (whole.scored, whole.reward, cut.verdict) == (True, 1.5, Verdict.CORRECT)
        assert (cut.scored, cut.reward) == ((False, 0.0) if masked else (True, 1.5))
        assert ("rewards.mask_truncated" in cut.detail) == masked
