"""The lines of metrics.jsonl: names that other people's scripts rely on, with values worked by hand."""

from __future__ import annotations

import math

import pytest

from rewards import Verdict
from rl_engine.learner.gap import SamplerGap
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.statistics import LearnStats
from rl_engine.run.metrics import Timing, advantage_metrics, learn_metrics, rollout_metrics, time_metrics
from tests.helpers.builders import completion, graded_group, prompt, result

# Two problems with two completions each, of 2, 4, 10 and 4 tokens.
UNEQUAL = graded_group(
    prompt("1+1=?"),
    [
        (completion(tokens=2), result(Verdict.CORRECT, 1.5, terms={"format": 0.5})),
        (completion(tokens=4), result(Verdict.INCORRECT, 0.5, terms={"format": 0.5, "length": 0.25})),
    ],
)
EQUAL = graded_group(
    prompt("1+2=?"),
    [
        (completion(tokens=10, finish_reason="length"), result(Verdict.NO_ANSWER)),
        (completion(tokens=4), result(Verdict.TIMEOUT)),
    ],
)


def test_what_was_sampled() -> None:
    assert rollout_metrics([UNEQUAL, EQUAL]) == {
        "reward/mean": 2.0 / 4,
        "reward/accuracy": 1 / 4,
        "reward/verdict/correct": 1 / 4,
        "reward/verdict/incorrect": 1 / 4,
        "reward/verdict/no_answer": 1 / 4,
        "reward/verdict/unparseable": 0,
        "reward/verdict/timeout": 1 / 4,
        "reward/verdict/error": 0,
        "reward/unscored_frac": 0,
        "completion/tokens_mean": 20 / 4,
        "completion/tokens_max": 10,
        "completion/tokens_mean_correct": 2,
        "completion/tokens_mean_wrong": 18 / 3,
        "completion/truncated_frac": 1 / 4,
        "groups/no_signal_frac": 1 / 2,
        # A completion without the term counts as zero.
        "reward/term/format": 1.0 / 4,
        "reward/term/length": 0.25 / 4,
    }


def test_means_of_rewards_are_over_what_is_scored() -> None:
    """Rewards of 1.5 and 0.5 with a term of 0.5 each, beside three unscored completions."""
    nothing = result(Verdict.ERROR, 0.0, scored=False)
    failed = graded_group(prompt("1+2=?"), [(completion(), nothing), (completion(), nothing)])
    metrics = rollout_metrics([UNEQUAL, failed, graded_group(prompt("2+2=?"), [(completion(), nothing)])])
    assert metrics["reward/mean"] == 1.0
    assert metrics["reward/term/format"] == 0.5
    assert metrics["reward/unscored_frac"] == pytest.approx(3 / 5)
    assert metrics["reward/accuracy"] == pytest.approx(1 / 5)
    assert metrics["groups/no_signal_frac"] == pytest.approx(2 / 3)
    assert "reward/mean" not in rollout_metrics([failed])


@pytest.mark.parametrize(
    ("verdict", "there", "absent"),
    [
        (Verdict.CORRECT, "completion/tokens_mean_correct", "completion/tokens_mean_wrong"),
        (Verdict.INCORRECT, "completion/tokens_mean_wrong", "completion/tokens_mean_correct"),
    ],
)
def test_a_mean_over_nothing_is_left_out(verdict: Verdict, there: str, absent: str) -> None:
    group: GradedGroup = graded_group(prompt(), [(completion(tokens=3), result(verdict))])
    metrics = rollout_metrics([group])
    assert metrics[there] == 3
    assert absent not in metrics


def test_the_spread_of_advantages_counts_groups_without_signal() -> None:
    assert advantage_metrics([[0.5, -1.5], [0.0, 1.0]]) == {
        # Mean 0: √((0.25 + 2.25 + 0 + 1) / 4).
        "advantage/std": pytest.approx(math.sqrt(0.875)),
        "advantage/max_abs": 1.5,
    }


def test_what_the_learner_saw() -> None:
    stats = LearnStats(
        loss=-0.1,
        grad_norm=0.2,
        entropy=0.3,
        kl_base=0.4,
        gap=SamplerGap(kl=0.6, kl_error=0.1, kl_v1=0.5, kl_v3=0.7, logprob_max=0.8, tokens=20, beyond=0.05),
        ratio={"p01": 0.9, "p50": 1.0, "p99": 1.1, "max": 1.2},
        ess_frac=0.99,
        clip_low_frac=0.01,
        clip_high_frac=0.02,
        correction={"mean": 0.97, "outside_frac": 0.03},
        tokens=20,
    )
    assert learn_metrics(stats, lr=1e-3) == {
        "loss": -0.1,
        "grad_norm": 0.2,
        "updates/skipped": 0.0,
        "lr": 1e-3,
        "policy/entropy": 0.3,
        "policy/kl_base": 0.4,
        "sampler/kl": 0.6,
        "sampler/kl_error": 0.1,
        "sampler/tokens": 20.0,
        "sampler/kl_v1": 0.5,
        "sampler/kl_v3": 0.7,
        "sampler/logprob_gap_max": 0.8,
        "sampler/beyond_frac": 0.05,
        "ratio/p01": 0.9,
        "ratio/p50": 1.0,
        "ratio/p99": 1.1,
        "ratio/max": 1.2,
        "ratio/ess_frac": 0.99,
        "loss/clip_low_frac": 0.01,
        "loss/clip_high_frac": 0.02,
        "correction/mean": 0.97,
        "correction/outside_frac": 0.03,
    }


def test_a_skipped_update_leaves_out_what_is_not_a_number() -> None:
    """A file of JSON lines has no NaN."""
    nothing = SamplerGap(kl=0.0, kl_error=0.0, kl_v1=0.0, kl_v3=0.0, logprob_max=math.inf, tokens=1)
    stats = LearnStats(
        loss=math.nan,
        grad_norm=math.inf,
        skipped=1,
        entropy=-math.inf,
        kl_base=math.nan,
        gap=nothing,
        ratio={"max": math.inf, "p50": 1.0},
        ess_frac=0.0,
        clip_low_frac=0.0,
        clip_high_frac=0.0,
        correction={},
        tokens=1,
    )
    metrics = learn_metrics(stats, lr=1e-3)
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["updates/skipped"] == metrics["ratio/p50"] == 1.0
    absent = {"loss", "grad_norm", "policy/entropy", "policy/kl_base", "sampler/logprob_gap_max", "ratio/max"}
    assert not absent & metrics.keys()


def test_where_the_time_went() -> None:
    timing = Timing(rollout_s=2.0, grade_s=0.5, learn_s=1.0, sync_s=0.25, step_s=4.0)
    assert time_metrics(timing, tokens=20) == {
        "time/rollout_s": 2.0,
        "time/grade_s": 0.5,
        "time/learn_s": 1.0,
        "time/sync_s": 0.25,
        "time/step_s": 4.0,
        "throughput/tokens_per_s": 5.0,
    }
