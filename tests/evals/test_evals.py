"""Suites, votes, reports, contamination."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from evals.contamination import contamination
from evals.scoring.estimators import Votes
from evals.scoring.outcomes import Outcome, Sample, outcome_of
from evals.scoring.report import compare, report_on
from evals.scoring.votes import MOST_COMPARED, count_votes
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
    suite_needs_hub,
)
from rewards import Grader, GradeResult, Verdict
from rewards.overlap import between
from rl_engine.config import load_config
from rl_engine.sampling.data import TrainingData
from rl_engine.sft.embedded import QUICKSTART_SUMS
from rl_engine.train.assemble import overlap_notes
from rollout.config import ArithmeticConfig, SamplingConfig
from rollout.prompts.problems import SOURCES
from rollout.types import AdapterRef, Completion, Problem, Prompt, RolloutGroup

VERSION_3 = AdapterRef(name="policy", version=3, path=Path("a"), sha256="9f", rank=1)


def sample(extracted: str | None, verdict: Verdict = Verdict.INCORRECT, tokens: int = 1, cut: bool = False) -> Sample:
    return Sample(
        text="",
        extracted=extracted,
        verdict=verdict,
        detail="",
        tokens=tokens,
        finish_reason="length" if cut else "stop",
    )


def outcome(name: str, *samples: Sample, level: str = "", adapter: str = "base", sampling_s: float = 0.0) -> Outcome:
    problem = Problem(id=name, text=name, answer="1", level=level, subject="s")
    return Outcome(problem=problem, adapter=adapter, samples=samples, sampling_s=sampling_s)


# Suites.

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
    """Six digits of a digest of everything in the definition that can move a score."""
    suite = SUITES[name]
    source = SOURCES.get(suite.source)
    facts = {
        **dataclasses.asdict(dataclasses.replace(suite, version=0)),
        "answer_forms": ANSWER_FORMS,
        "data": (source.path, source.revision, source.configs, source.splits) if source else EMBEDDED_SUMS.model_dump(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:6]


def test_a_suite_changes_with_its_version_alone() -> None:
    """Where this fails the definition of a suite changed: raise its version, then write both down here."""
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
    assert suite_needs_hub(SUITES["gsm8k"], None)
    assert not suite_needs_hub(SUITES["gsm8k"], "data")


def test_the_held_out_suite_is_fixed_and_the_quickstarts() -> None:
    held_out = load_suite(find_suite("held_out")).problems
    assert len(held_out) == 256
    assert load_suite(find_suite("held_out"), limit=10).problems == held_out[:10]
    assert load_config("quickstart.yaml").data.arithmetic == EMBEDDED_SUMS == QUICKSTART_SUMS
    other = load_suite(find_suite("held_out"), sums=ArithmeticConfig(terms=(2,), largest=30)).problems
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
def test_the_protocol_is_the_suites_unless_told_otherwise(
    suite: str, asked: dict[str, float], expected: tuple[float, ...]
) -> None:
    chosen = sampling_of(SUITES[suite], **asked)  # type: ignore[arg-type]
    assert (chosen.n, chosen.temperature, chosen.top_p, chosen.max_tokens) == expected


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="the same one"):
        sampling_of(SUITES["gsm8k"], n=4, temperature=0.0)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gsm8k", "math500", "math", "aime2024", "aime2025", "aime2026"])
def test_suites_read_from_a_directory(name: str, shared_data: Path) -> None:
    assert len(load_suite(find_suite(name), str(shared_data)).problems) == SUITES[name].size


# Votes.


def test_wrong_answers_are_counted_by_what_they_state(grader: Grader) -> None:
    right = sample("7", Verdict.CORRECT)
    found = count_votes(
        [
            outcome("a", *map(sample, ("1/2", "0.5", r"\frac{2}{4}", "3")), right, sample(None, Verdict.NO_ANSWER)),
            outcome("b", *map(sample, ("x+1", "1+x", "x+2", "{broken", "{broken"))),
            # Refused although it states the reference: the verdict counts, not the text.
            outcome("c", right, sample("7"), sample("7")),
        ],
        grader,
    )
    assert found[0] == Votes(right=1, wrong=(3, 1), silent=1)
    assert found[1] == Votes(right=0, wrong=(2, 2, 1), silent=0)
    assert found[2] == Votes(right=1, wrong=(2,), silent=0)


def test_comparisons_are_bounded(grader: Grader) -> None:
    """Beyond the limit an answer equals only its own text."""
    many = [str(number) for number in range(10, 10 + MOST_COMPARED)]
    (votes,) = count_votes([outcome("a", *map(sample, [*many, *many, "10.0", "99", "99"]))], grader)
    assert votes.wrong == (2,) * (MOST_COMPARED + 1) + (1,)


# Reports.


def test_a_report_by_hand(tmp_path: Path, grader: Grader) -> None:
    key = VERSION_3.key
    right, wrong = sample("1", Verdict.CORRECT, tokens=3), sample("2", tokens=7)
    outcomes = [
        outcome("a", right, sample("1", Verdict.CORRECT, tokens=5), level="1", adapter=key, sampling_s=0.5),
        outcome(
            "b", sample(None, Verdict.NO_ANSWER, tokens=9, cut=True), wrong, level="10", adapter=key, sampling_s=1.5
        ),
        outcome("c", wrong, right, level="2", adapter=key, sampling_s=1.0),
    ]
    sampling = SamplingConfig(n=2, max_tokens=9, temperature=0.6)
    report = report_on(SUITES["aime2024"], outcomes, sampling, grader, VERSION_3)
    assert (report.adapter, report.adapter_sha256, report.suite_version) == (key, "9f", 1)
    assert (report.avg, report.problems, report.samples) == (0.5, 3, 2)
    assert {k: estimate.value for k, estimate in report.pass_at.items()} == {1: 0.5, 2: pytest.approx(2 / 3)}
    # One right and one wrong answer tie: half a point.
    assert report.maj_at[2].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert (report.tokens_mean, report.tokens_mean_correct) == (34 / 6, 11 / 3)
    assert report.tokens_mean_wrong == 23 / 3
    assert report.tokens_per_s == pytest.approx(34 / 3)
    assert report.truncated_frac == pytest.approx(1 / 6)
    assert report.verdicts["no_answer"] == pytest.approx(1 / 6)
    assert {name: (part.problems, part.avg) for name, part in report.by_level.items()} == {
        "1": (1, 1.0),
        "2": (1, 0.5),
        "10": (1, 0.0),
    }
    assert list(report.by_level) == ["1", "2", "10"]
    assert report.by_subject["s"].tokens_mean == 34 / 6
    metrics = report.metrics()
    assert metrics["eval/aime2024/avg"] == 0.5
    assert metrics["eval/aime2024/pass_at_2"] == pytest.approx(2 / 3)
    path = report.write(tmp_path)
    assert path.name == "aime2024-policy-v000003.json"
    assert json.loads(path.read_text())["interval"] == list(report.interval)
    base = [dataclasses.replace(one, samples=(wrong, wrong)) for one in outcomes]
    assert compare(outcomes, base).mean == 0.5


def test_completions_of_another_version_cannot_measure_this_one(grader: Grader) -> None:
    stale = outcome("a", sample("1", Verdict.CORRECT), adapter="policy-v000002")
    with pytest.raises(ValueError, match="policy-v000002 cannot measure policy-v000003"):
        report_on(SUITES["held_out"], [stale], SamplingConfig(n=1), grader, VERSION_3)
    completions = tuple(
        Completion(text="", token_ids=(), logprobs=(), finish_reason="stop", adapter=adapter) for adapter in "ab"
    )
    group = RolloutGroup(prompt=Prompt(problem=stale.problem, text="", token_ids=()), completions=completions)
    verdict = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="1")
    with pytest.raises(ValueError, match="several adapters: a, b"):
        outcome_of(group, [verdict, verdict])


# Contamination.

STORY = "a farmer has twelve cows and buys seven more at the market before selling {} of them to a neighbour"


def problems(*texts: str, prefix: str = "p") -> list[Problem]:
    return [Problem(id=f"{prefix}{index}", text=text, answer="1") for index, text in enumerate(texts)]


def test_training_problems_that_a_suite_holds_are_counted() -> None:
    formula = "find the remainder when the number m plus n is divided by one thousand where {} is given"
    suite = problems(STORY.format(3), formula.format("it"), "What is 2 + 2?")
    training = problems(
        STORY.format("3!"),  # word for word: punctuation does not count
        STORY.format(5),  # the story goes on in other numbers
        "Something else entirely",
        *(formula.format(name) for name in "abcdefg"),  # held by more than five: a formula
    )
    (found,) = contamination(training, {"mine": suite})
    assert (found.training, found.exact, found.ngram, found.touched) == (10, 1, 1, 1)
    assert found.examples == (("p0", "mine:p0"), ("p1", "mine:p0"))
    assert "2 of 10 training problems overlap mine" in found.describe()
    # The same file, hence the same ids, on both sides.
    (same,) = contamination(suite, {"mine": suite})
    assert (same.exact, bool(same)) == (3, True)
    assert not contamination(problems("Nothing alike"), {"mine": suite})[0]


def test_a_run_is_warned_of_overlap_but_not_of_generated_sums() -> None:
    prompts = [Prompt(problem=problem, text=problem.text, token_ids=()) for problem in problems("a 1", "b 2")]
    data = TrainingData(prompts, Counter(), {})
    (note,) = overlap_notes(data, [(SUITES["gsm8k"], prompts[:1]), (SUITES["held_out"], prompts)])
    assert note.startswith("warning: 1 of 2 training problems overlap gsm8k (1 word for word")


@pytest.mark.shared
def test_two_passes_find_what_one_finds(shared_data: Path) -> None:
    training = load_suite(find_suite(str(shared_data / "math_train.jsonl"))).problems[6500:]
    suite = load_suite(SUITES["math500"], str(shared_data)).problems
    (found,) = contamination(training, {"math500": suite})
    pairs = between(*([(f"{mark}{p.id}", p.text) for p in group] for mark, group in (("", training), (":", suite))))
    assert found.exact + found.ngram == len({pair.left for pair in pairs})
    assert found.touched == len({pair.right for pair in pairs})
    assert found.exact >= 1  # math-train-07163 is math500-046
